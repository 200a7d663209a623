"""Questions, budgets and methods -> answers: each picture is encoded once for all settings; what is in the results
already is not asked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

import torch

from prunesid_cli.errors import NonFiniteError, PruneSIDError
from prunesid_cli.evaluate.metrics import METRICS
from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.results import Results, Said, Setting, together
from prunesid_cli.inputs.video.load import load_media
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.pipeline.compress import preprocess_media
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.segments import item_information
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.runtime.prefetch import Prefetcher
from prunesid_cli.runtime.shutdown import StopRequest
from prunesid_cli.types import Generation, Pixels, TokenSet

AHEAD = 2
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedRecord:
    """A record with its media as the tower takes them, and their digests."""

    record: Record
    digest: str
    pixels: tuple[Pixels, ...]


Loaded = LoadedRecord | tuple[str, PruneSIDError]
"""A record that is ready, or the key of one and why it is not."""


@dataclass(frozen=True)
class Runner:
    """`pruners` has one for each setting, all of the same vision half."""

    pruners: dict[Setting, Pruner]
    language: LanguageHalf
    generation: Generation
    batch_size: int
    diverges: bool = False
    stop: StopRequest = field(default_factory=StopRequest)

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
        prefetcher = Prefetcher(open_ones, partial(_load, first), num_bytes=_weight, max_ahead=depth, stop=self.stop)
        with prefetcher:
            for batch in prefetcher.batches(size_of=lambda item: 1, max_size=size, max_items=self.batch_size):
                self._settle(batch, results)
                yield len(batch)

    def _settle(self, batch: Sequence[Loaded], results: Results) -> None:
        results.failed |= dict(one for one in batch if isinstance(one, tuple))
        ready = [one for one in batch if isinstance(one, LoadedRecord)]
        answers = run_in_halves_on_oom(
            lambda some: self._ask(some, results), ready, lambda one: _too_large(one, results)
        )
        for one, said in zip(ready, answers, strict=True):
            results.add(one.record, said)

    def _ask(self, batch: Sequence[LoadedRecord], results: Results) -> list[list[Said]]:
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

    def _answers(self, batch: Sequence[LoadedRecord], owners: Sequence[int], results: Results) -> list[list[Said]]:
        pruner = self.pruners[self.base]
        encoded = pruner.encode([pixels for one in batch for pixels in one.pixels])
        values = pruner.information(encoded)
        split = partial(_by_owner, owners=owners)
        phis = [item_information(own, item) for own, item in zip(values, encoded, strict=True)]
        totals = [item.layout.total for item in encoded]
        found, first = list[list[Said]]([[] for _ in batch]), None
        for setting, own in self.pruners.items():
            is_compared = self.diverges and setting == self.base
            if not is_compared and all(results.has(one.record, setting, self.diverges) for one in batch):
                continue
            counts = [own.token_counts(*pair) for pair in zip(split(phis), split(totals), strict=True)]
            sets = split(own.keep(encoded, [count for some in counts for count in some], values))
            prompts = [self.language.embed(one.record.prompt, some) for one, some in zip(batch, sets, strict=True)]
            answers = self.language.generate(prompts, self.generation)
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


def _said(one: LoadedRecord, setting: str, sets: Sequence[TokenSet], answer: str, far: float | None) -> Said:
    record = one.record
    score = METRICS[record.metric].score(answer, record.answers) if record.answers else None
    total, kept = sum(one.layout.total for one in sets), sum(one.kept for one in sets)
    return Said(record.key, one.digest, setting, answer, total, kept, score, far)


def _load(pruner: Pruner, record: Record) -> Loaded:
    try:
        media = [load_media(one, pruner.sampling) for one in record.media]
        return LoadedRecord(record, together([one.digest for one in media]), tuple(preprocess_media(pruner, media)))
    except PruneSIDError as error:
        return record.key, error


def _weight(one: Loaded) -> int:
    """Bytes."""
    if not isinstance(one, LoadedRecord):
        return 0
    return sum(tensor.nbytes for pixels in one.pixels for tensor in pixels.tensors.values())


def _too_large(one: LoadedRecord, results: Results) -> list[Said]:
    results.failed[one.record.key] = PruneSIDError(
        f"line {one.record.number}: not enough memory for one record", "try --device cpu"
    )
    return []
