"""What was said to which record under which setting, in memory and in a file of JSON lines from which a run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunesid_cli.errors import MediaError, PruneSIDError, UsageError
from prunesid_cli.evaluate.records import Record
from prunesid_cli.inputs.video.load import hash_media

TOLD = ("line", "media", "prompt", "kind", "expected")
"""What a line of the results file tells of its record, for people."""


@dataclass(frozen=True)
class Setting:
    """How much is kept, and by which method."""

    keep: str
    method: str

    def __str__(self) -> str:
        return "all" if self.keep == "all" else f"{self.keep} {self.method}"


@dataclass(frozen=True)
class Said:
    """What was answered to one record under one setting.

    digest      of what was shown
    score       None where no answer is expected
    divergence  Kullback-Leibler divergence of the first token from that of the unpruned model, where it was asked for
    """

    key: str
    digest: str
    setting: str
    answer: str
    tokens: int
    kept: int
    score: float | None = None
    divergence: float | None = None


@dataclass
class Results:
    """The answers so far, in a file if there is one; `failed`: records that could not be asked, by their keys.

    Raises:
        UsageError: the file is not one of answers.
    """

    path: Path | None
    context: str
    said: dict[tuple[str, str], Said] = field(default_factory=dict)
    failed: dict[str, PruneSIDError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.decode(errors="replace").split("\n")[:-1]:
            try:
                record = json.loads(line)
                same = record.pop("context") == self.context
                one = Said(**{name: value for name, value in record.items() if name not in TOLD})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(f"{self.path} holds something else than answers", "name another --out") from error
            if same:
                self.said[one.key, one.setting] = one
        if len(whole) < len(data):  # an interrupted run was in the middle of a line
            os.truncate(self.path, len(whole))

    def leave_out(self, records: Sequence[Record]) -> int:
        """Forget answers about media that are no longer what they were -> of how many records."""
        known = {key: one.digest for (key, _), one in self.said.items()}
        changed = {one.key for one in records if one.key in known and _shown(one) not in (known[one.key], None)}
        self.said = {which: one for which, one in self.said.items() if one.key not in changed}
        return len(changed)

    def has(self, record: Record, setting: Setting, diverges: bool = False) -> bool:
        """Whether a record was answered, and `diverges`: its divergence measured."""
        one = self.said.get((record.key, str(setting)))
        return one is not None and not (diverges and one.divergence is None)

    def _is_new(self, one: Said) -> bool:
        known = self.said.get((one.key, one.setting))
        return known is None or (known.divergence is None and one.divergence is not None)

    def add(self, record: Record, some: Sequence[Said]) -> None:
        """What was said to a record."""
        some = [one for one in some if self._is_new(one)]
        self.said |= {(one.key, one.setting): one for one in some}
        if self.path is None or not some:
            return
        values = (record.number, record.named, record.prompt, record.kind, record.answers)
        about = dict(zip(TOLD, values, strict=True))
        lines = "".join(json.dumps(about | one.__dict__ | {"context": self.context}) + "\n" for one in some)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise PruneSIDError(f"cannot write {self.path}: {error.strerror}", "free some space") from error


def _shown(record: Record) -> str | None:
    """The digests of a record's media; None where they cannot be read."""
    try:
        return together([hash_media(one) for one in record.media])
    except MediaError:  # what was answered about them stands
        return None


def together(digests: Sequence[str]) -> str:
    """In short: there is a line for each answer."""
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()
