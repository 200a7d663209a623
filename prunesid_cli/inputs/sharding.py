"""Which inputs are whose, where several machines share a collection."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from prunesid_cli.errors import UsageError

AUTO = "auto"
SLURM = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Partition:
    """The `number`th of `of`, from 1; `place`: what said so, where no option did."""

    number: int = 1
    count: int = 1
    origin: str = ""

    def takes(self, source: str) -> bool:
        """By a hash of the path as it was named, so that what is added moves nothing else."""
        digest = hashlib.blake2b(os.fsencode(source), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_partition(text: str | None, environment: Mapping[str, str]) -> Partition:
    """Of `I/N`, or of what the environment says where that was asked for; None: all is ours.

    Raises:
        UsageError: it is no such thing.
    """
    if text is None:
        return Partition()
    if text == AUTO:
        return _of_environment(environment)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    return _checked(int(match[1]), int(match[2])) if match else _refuse(f"cannot read --shard {text!r}")


def _of_environment(environment: Mapping[str, str]) -> Partition:
    try:
        if f"{SLURM}ID" in environment:
            number, low, high, count = (int(environment[SLURM + name]) for name in ("ID", "MIN", "MAX", "COUNT"))
            step = (high - low) // max(count - 1, 1) or 1
            if low + step * (count - 1) != high or (number - low) % step:
                return _refuse(f"the tasks of this SLURM array are not evenly numbered: {low} to {high}, {count}")
            return _checked((number - low) // step + 1, count, f"{SLURM}ID {number}")
        if "JOB_COMPLETION_INDEX" in environment:
            index = int(environment["JOB_COMPLETION_INDEX"])
            return _checked(index + 1, int(environment["JOB_COMPLETIONS"]), f"JOB_COMPLETION_INDEX {index}")
    except (KeyError, ValueError) as error:
        return _refuse(f"the environment does not say which shard this is: {error}")
    return _refuse("--shard auto finds neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX")


def _checked(number: int, count: int, origin: str = "") -> Partition:
    if not 1 <= number <= count:
        return _refuse(f"there is no shard {number}/{count}")
    return Partition(number, count, origin)


def _refuse(problem: str) -> Partition:
    raise UsageError(problem, hint="of four machines: --shard 1/4 to --shard 4/4")
