"""Questions, budgets and methods -> marks: each picture is encoded once for all settings, each answer kept on disk.

An answer is a line of the results file, written when it is there; what is in the file is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import torch

from prunesid_cli.ahead import Ahead, batches_of
from prunesid_cli.errors import MediaError, NonFiniteError, PruneSIDError, UsageError
from prunesid_cli.evaluate.metrics import METRICS
from prunesid_cli.evaluate.records import Record
from prunesid_cli.families.base import LanguageHalf
from prunesid_cli.interrupt import Stop
from prunesid_cli.memory import within_memory
from prunesid_cli.pipeline import preprocessed
from prunesid_cli.pruner import Pruner
from prunesid_cli.segments import of_item
from prunesid_cli.types import Generation, Pixels, TokenSet
from prunesid_cli.video.reading import load_media, media_digest

AHEAD = 2
TOLD = ("line", "media", "prompt", "kind", "expected")
"""What a line of the results file tells of its record, for people."""
T = TypeVar("T")


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


@dataclass(frozen=True)
class Ready:
    """A record with its media as the tower takes them, and their digests."""

    record: Record
    digest: str
    pixels: tuple[Pixels, ...]


Loaded = Ready | tuple[str, PruneSIDError]
"""A record that is ready, or the key of one and why it is not."""


@dataclass(frozen=True)
class Runner:
    """`pruners` has one for each setting, all of the same vision half."""

    pruners: dict[Setting, Pruner]
    language: LanguageHalf
    how: Generation
    batch_size: int
    diverges: bool = False
    stop: Stop = field(default_factory=Stop)

    @property
    def base(self) -> Setting:
        return next(setting for setting in self.pruners if setting.keep == "all")

    def run(self, records: Sequence[Record], results: Results) -> Iterator[int]:
        """Ask what was not asked yet; yields how many records are done, batch by batch."""
        has = partial(results.has, diverges=self.diverges)
        open_ones = [one for one in records if not all(has(one, setting) for setting in self.pruners)]
        yield len(records) - len(open_ones)
        first = next(iter(self.pruners.values()))
        size, depth = lambda: self.batch_size, lambda: AHEAD * self.batch_size
        with Ahead(open_ones, partial(_load, first), _weight, depth, self.stop) as loaded:
            for batch in batches_of(loaded, size, lambda one: 1, self.batch_size, self.stop):
                self._settle(batch, results)
                yield len(batch)

    def _settle(self, batch: Sequence[Loaded], results: Results) -> None:
        results.failed |= dict(one for one in batch if isinstance(one, tuple))
        ready = [one for one in batch if isinstance(one, Ready)]
        answers = within_memory(lambda some: self._ask(some, results), ready, lambda one: _too_large(one, results))
        for one, said in zip(ready, answers, strict=True):
            results.add(one.record, said)

    def _ask(self, batch: Sequence[Ready], results: Results) -> list[list[Said]]:
        """All settings, for records whose pictures are encoded together; one that is not finite costs itself alone."""
        if not batch:
            return []
        owners = [row for row, one in enumerate(batch) for _ in one.pixels]
        try:
            return self._answers(batch, owners, results)
        except NonFiniteError as error:
            bad = {owners[row] for row in error.rows}
        for row in bad:
            where = f"line {batch[row].record.number}"
            problem = f"{where}: the vision tower gives NaN or infinity"
            results.failed[batch[row].record.key] = NonFiniteError(problem, "try --dtype fp32")
        good = iter(self._ask([one for row, one in enumerate(batch) if row not in bad], results))
        return [[] if row in bad else next(good) for row in range(len(batch))]

    def _answers(self, batch: Sequence[Ready], owners: Sequence[int], results: Results) -> list[list[Said]]:
        pruner = self.pruners[self.base]
        encoded = pruner.encode([pixels for one in batch for pixels in one.pixels])
        values = pruner.information(encoded)
        split = partial(_by_owner, owners=owners)
        phis = [of_item(own, item) for own, item in zip(values, encoded, strict=True)]
        totals = [item.layout.total for item in encoded]
        found, first = list[list[Said]]([[] for _ in batch]), None
        for setting, own in self.pruners.items():
            is_compared = self.diverges and setting == self.base
            if not is_compared and all(results.has(one.record, setting, self.diverges) for one in batch):
                continue
            counts = [own.counts(*pair) for pair in zip(split(phis), split(totals), strict=True)]
            sets = split(own.keep(encoded, [count for some in counts for count in some], values))
            prompts = [self.language.embed(one.record.prompt, some) for one, some in zip(batch, sets, strict=True)]
            answers = self.language.generate(prompts, self.how)
            logs = self.language.logits(prompts).log_softmax(-1) if self.diverges else None
            first = logs if first is None else first
            for row, (one, some, answer) in enumerate(zip(batch, sets, answers, strict=True)):
                far = None if logs is None or first is None else _divergence(first[row], logs[row])
                found[row].append(_said(one, str(setting), some, answer.text, far))
        return found


def _by_owner(some: Sequence[T], owners: Sequence[int]) -> list[list[T]]:
    """What belongs to each record of a batch; owners are in order."""
    return [[one for one, _ in pairs] for _, pairs in groupby(zip(some, owners, strict=True), itemgetter(1))]


def _divergence(base: torch.Tensor, other: torch.Tensor) -> float:
    """KL(base || other) of log-probabilities [V], in nats."""
    return float((base.exp() * (base - other)).nan_to_num().sum().clamp(min=0))


def _said(one: Ready, setting: str, sets: Sequence[TokenSet], answer: str, far: float | None) -> Said:
    record = one.record
    score = METRICS[record.metric].score(answer, record.answers) if record.answers else None
    total, kept = sum(one.layout.total for one in sets), sum(one.kept for one in sets)
    return Said(record.key, one.digest, setting, answer, total, kept, score, far)


def _load(pruner: Pruner, record: Record) -> Loaded:
    try:
        media = [load_media(one, pruner.sampling) for one in record.media]
        return Ready(record, _together([one.digest for one in media]), tuple(preprocessed(pruner, media)))
    except PruneSIDError as error:
        return record.key, error


def _shown(record: Record) -> str | None:
    """The digests of a record's media; None where they cannot be read."""
    try:
        return _together([media_digest(one) for one in record.media])
    except MediaError:  # what was answered about them stands
        return None


def _together(digests: Sequence[str]) -> str:
    """In short: there is a line for each answer."""
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()


def _weight(one: Loaded) -> int:
    """Bytes."""
    if not isinstance(one, Ready):
        return 0
    return sum(tensor.nbytes for pixels in one.pixels for tensor in pixels.tensors.values())


def _too_large(one: Ready, results: Results) -> list[Said]:
    results.failed[one.record.key] = PruneSIDError(
        f"line {one.record.number}: not enough memory for one record", "try --device cpu"
    )
    return []
