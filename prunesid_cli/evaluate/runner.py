"""Runs an evaluation: asks each record under each setting. Media are encoded once for all settings.

Answers that are in the results already are not generated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol, TypeVar

from torch import Tensor

from prunesid_cli.errors import NonFiniteError, PruneSIDError
from prunesid_cli.evaluate.metrics import METRICS
from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.results import PruningSetting, Results, ScoredAnswer, combine_digests
from prunesid_cli.inputs.video.load import load_media
from prunesid_cli.pipeline.ask import preprocess_media
from prunesid_cli.pipeline.load import input_error
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.segments import item_information
from prunesid_cli.runtime.isolate import run_without_bad_items
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.runtime.prefetch import Prefetcher
from prunesid_cli.runtime.shutdown import StopRequest
from prunesid_cli.types import Answer, Encoded, Generation, Pixels, Prompt, TokenSet
from prunesid_cli.visualization.explain import find_groups
from prunesid_cli.visualization.patches import PatchRecord, to_patch_record

PREFETCHED_BATCHES = 2
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedRecord:
    """A record with its media as input of the vision tower.

    Attributes:
        record: The record.
        digest: Digest of the media.
        pixels: The media.
    """

    record: Record
    digest: str
    pixels: tuple[Pixels, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for item in self.pixels for tensor in item.tensors.values())


@dataclass(frozen=True)
class FailedRecord:
    """A record whose media could not be loaded."""

    record: Record
    error: PruneSIDError
    nbytes: int = 0


class Answerer(Protocol):
    """What answers prompts: a language half, or another engine."""

    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Prompt:
        """See `LanguageHalf.embed`."""
        ...

    def generate(self, prompts: Sequence[Prompt], generation: Generation) -> list[Answer]:
        """See `LanguageHalf.generate`."""
        ...


@dataclass(frozen=True)
class Runner:
    """What an evaluation works with.

    Attributes:
        pruners: Setting -> its pruner; all have the same vision half, and one setting is without pruning.
        answerer: Answers the prompts.
        generation: How to decode.
        batch_size: Records per batch.
        logits: Prompts -> scores of the first token of each answer, to measure their divergence from the unpruned
            ones; None: it is not measured.
        stop: Whether the user asked to stop.
        with_groups: Whether the groups of patches are found as well, which takes a second selection.
    """

    pruners: dict[PruningSetting, Pruner]
    answerer: Answerer
    generation: Generation
    batch_size: int
    logits: Callable[[Sequence[Prompt]], Tensor] | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    with_groups: bool = False

    @property
    def unpruned(self) -> PruningSetting:
        """The setting without pruning."""
        return next(setting for setting in self.pruners if setting.keep == "all")

    def limited_to(self, settings: Sequence[PruningSetting]) -> Runner:
        """A runner for some of the settings."""
        return replace(self, pruners={setting: self.pruners[setting] for setting in settings})

    def run(self, records: Sequence[Record], results: Results) -> Iterator[int]:
        """Ask what was not asked yet. Yields the number of records that are done, batch by batch."""
        missing = [record for record in records if not all(self._has(results, record, s) for s in self.pruners)]
        yield len(records) - len(missing)
        prefetcher = Prefetcher(
            missing,
            self._load,
            num_bytes=lambda loaded: loaded.nbytes,
            max_ahead=lambda: PREFETCHED_BATCHES * self.batch_size,
            stop=self.stop,
        )
        with prefetcher:
            batches = prefetcher.batches(
                size_of=lambda loaded: 1, max_size=lambda: self.batch_size, max_items=self.batch_size
            )
            for batch in batches:
                self._run_batch(batch, results)
                yield len(batch)

    def _has(self, results: Results, record: Record, setting: PruningSetting) -> bool:
        return results.has(record, setting, self.logits is not None)

    def _load(self, record: Record) -> LoadedRecord | FailedRecord:
        pruner = self.pruners[self.unpruned]
        try:
            media = [load_media(path, pruner.sampling, pruner.decoding) for path in record.media]
            pixels = preprocess_media(pruner, media)
        except Exception as error:
            return FailedRecord(record, input_error(" ".join(record.media), error))
        return LoadedRecord(record, combine_digests([item.digest for item in media]), tuple(pixels))

    def _run_batch(self, batch: Sequence[LoadedRecord | FailedRecord], results: Results) -> None:
        for item in batch:
            if isinstance(item, FailedRecord):
                results.failed[item.record.key] = item.error
        loaded = [item for item in batch if isinstance(item, LoadedRecord)]

        def ask(part: Sequence[LoadedRecord]) -> list[list[ScoredAnswer]]:
            return run_without_bad_items(lambda good: self._ask(good, results), part, on_bad_item)

        def on_bad_item(item: LoadedRecord) -> list[ScoredAnswer]:
            error = NonFiniteError("the vision tower gives NaN or infinity", "try --dtype fp32")
            results.failed[item.record.key] = error
            return []

        def on_too_large(item: LoadedRecord) -> list[ScoredAnswer]:
            results.failed[item.record.key] = PruneSIDError("not enough memory for one record", "try --device cpu")
            return []

        answers = run_in_halves_on_oom(ask, loaded, on_too_large)
        for item, new_answers in zip(loaded, answers, strict=True):
            results.add(item.record, new_answers)

    def _ask(self, batch: Sequence[LoadedRecord], results: Results) -> list[list[ScoredAnswer]]:
        """Ask a batch under all settings for which an answer is missing.

        A record fails if the model refuses its prompt, or if its answer cannot be scored.

        Raises:
            NonFiniteError: With `rows`, the records whose media give NaN or infinity.
        """
        unpruned = self.pruners[self.unpruned]
        encoded = unpruned.encode([pixels for item in batch for pixels in item.pixels])
        information = unpruned.information(encoded)
        answers = list[list[ScoredAnswer]]([[] for _ in batch])
        unpruned_log_probs = None
        for setting, pruner in self.pruners.items():
            needs_reference = self.logits is not None and setting == self.unpruned
            if not needs_reference and all(self._has(results, item.record, setting) for item in batch):
                continue
            counts = _token_counts(pruner, batch, encoded, information)
            try:
                kept = pruner.keep(encoded, counts, information)
            except NonFiniteError as error:
                owners = [row for row, item in enumerate(batch) for _ in item.pixels]
                rows = sorted({owners[row] for row in error.rows})
                raise NonFiniteError(error.problem, error.hint, rows) from error
            token_sets = _split_by_record(kept, batch)
            groups = [
                find_groups(pruner, item, count, values) if self.with_groups else None
                for item, count, values in zip(encoded, counts, information, strict=True)
            ]
            patches = _split_by_record(
                [
                    to_patch_record(tokens.layout, None if tokens.is_unpruned else tokens.slots, item_groups)
                    for tokens, item_groups in zip(kept, groups, strict=True)
                ],
                batch,
            )
            prompts = dict[int, Prompt]()  # the rows that fail here are the same under each setting
            for row, (item, tokens) in enumerate(zip(batch, token_sets, strict=True)):
                try:
                    prompts[row] = self.answerer.embed(item.record.prompt, tokens)
                except PruneSIDError as error:
                    results.failed[item.record.key] = error
            if not prompts:
                break
            generated = self.answerer.generate([*prompts.values()], self.generation)
            log_probs = self.logits([*prompts.values()]).log_softmax(-1) if self.logits else None
            if unpruned_log_probs is None:
                unpruned_log_probs = log_probs
            for number, (row, answer) in enumerate(zip(prompts, generated, strict=True)):
                item, divergence = batch[row], None
                if log_probs is not None and unpruned_log_probs is not None:
                    divergence = _kl_divergence(unpruned_log_probs[number], log_probs[number])
                try:
                    if item.record.key not in results.failed:
                        answers[row].append(
                            _score(item, setting, token_sets[row], patches[row], answer.text, divergence)
                        )
                except PruneSIDError as error:
                    results.failed[item.record.key] = error
        return [[] if item.record.key in results.failed else found for item, found in zip(batch, answers, strict=True)]


def _token_counts(
    pruner: Pruner,
    batch: Sequence[LoadedRecord],
    encoded: Sequence[Encoded],
    information: Sequence[tuple[float, ...]],
) -> list[int]:
    """Budget of each medium; those of one record are a closed collection, over which a budget may be spread."""
    phis = [item_information(values, item) for values, item in zip(information, encoded, strict=True)]
    totals = [item.layout.total for item in encoded]
    counts = list[int]()
    for item in batch:
        start, end = len(counts), len(counts) + len(item.pixels)
        counts += pruner.token_counts(phis[start:end], totals[start:end])
    return counts


def _split_by_record(values: Sequence[T], batch: Sequence[LoadedRecord]) -> list[list[T]]:
    """Values of media, record by record."""
    remaining = iter(values)
    return [[next(remaining) for _ in item.pixels] for item in batch]


def _kl_divergence(reference: Tensor, other: Tensor) -> float:
    """KL(reference || other) of log-probabilities [V], in nats."""
    return float((reference.exp() * (reference - other)).nan_to_num().sum().clamp(min=0))


def _score(
    item: LoadedRecord,
    setting: PruningSetting,
    tokens: Sequence[TokenSet],
    patches: Sequence[PatchRecord],
    answer: str,
    divergence: float | None,
) -> ScoredAnswer:
    record = item.record
    return ScoredAnswer(
        key=record.key,
        digest=item.digest,
        setting=str(setting),
        answer=answer,
        tokens=sum(token_set.layout.total for token_set in tokens),
        kept=sum(token_set.kept for token_set in tokens),
        score=METRICS[record.metric].score(answer, record.answers) if record.answers else None,
        divergence=divergence,
        seen=round(fmean(token_set.layout.visible_share for token_set in tokens), 4),
        patches=tuple(patches),
    )
