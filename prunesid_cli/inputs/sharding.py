"""Partitions: which inputs belong to which machine, if several machines share a collection (`--shard`)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.containers import split_path

AUTO = "auto"
SLURM_PREFIX = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Partition:
    """One machine's share of the inputs; the default is all of them.

    Attributes:
        number: Number of this partition, from 1.
        count: Number of partitions.
        origin: The environment variable that said so; empty if an option did.
    """

    number: int = 1
    count: int = 1
    origin: str = ""

    def takes(self, source: str) -> bool:
        """Whether an input is in this partition, by a hash of its path, so that a new input moves no other one.

        Args:
            source: Path as the user named it. All that is in one container is in one partition.
        """
        if self.count == 1:
            return True
        digest = hashlib.blake2b(os.fsencode(split_path(source).container or source), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_partition(text: str | None, environment: Mapping[str, str]) -> Partition:
    """Read the value of `--shard`.

    Args:
        text: `I/N`; `auto` to use the environment; None for all inputs.
        environment: Environment variables, where SLURM and Kubernetes number the tasks of an array.

    Raises:
        UsageError: The text, or the environment, names no partition.
    """
    if text is None:
        return Partition()
    if text == AUTO:
        return _read_environment(environment)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match:
        raise _usage_error(f"cannot read --shard '{text}'")
    return _make_partition(int(match[1]), int(match[2]))


def _read_environment(environment: Mapping[str, str]) -> Partition:
    try:
        if f"{SLURM_PREFIX}ID" in environment:
            number, low, high, count = (int(environment[SLURM_PREFIX + name]) for name in ("ID", "MIN", "MAX", "COUNT"))
            step = (high - low) // max(count - 1, 1) or 1
            if low + step * (count - 1) != high or (number - low) % step:
                raise _usage_error(f"the tasks of this SLURM array are not evenly numbered: {low} to {high}, {count}")
            return _make_partition((number - low) // step + 1, count, f"{SLURM_PREFIX}ID {number}")
        if "JOB_COMPLETION_INDEX" in environment:
            index = int(environment["JOB_COMPLETION_INDEX"])
            return _make_partition(index + 1, int(environment["JOB_COMPLETIONS"]), f"JOB_COMPLETION_INDEX {index}")
    except (KeyError, ValueError) as error:
        raise _usage_error(f"the environment does not say which shard this is: {error}") from error
    raise _usage_error("--shard auto finds neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX")


def _make_partition(number: int, count: int, origin: str = "") -> Partition:
    if not 1 <= number <= count:
        raise _usage_error(f"there is no partition {number}/{count}")
    return Partition(number, count, origin)


def _usage_error(problem: str) -> UsageError:
    return UsageError(problem, hint="with four machines: --shard 1/4 to --shard 4/4")
