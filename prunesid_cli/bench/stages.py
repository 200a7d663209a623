"""Pictures to answers, stage by stage, in batches: what `ask` does, with a stopwatch between the stages.

Opening and the tower are the same whatever is kept, and are run once a round for all budgets; from selection on they
take turns. Against them runs the stock model; where it cannot be asked, its equal: all tokens kept and none selected.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from prunesid_cli.bench import cached
from prunesid_cli.bench.stock_model import Stock, inputs_of
from prunesid_cli.bench.timing import Lap, Meter
from prunesid_cli.errors import NonFiniteError, OutOfMemory
from prunesid_cli.inputs.image import Media
from prunesid_cli.inputs.video.frame_sampling import EVENLY
from prunesid_cli.inputs.video.load import load_media
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.pipeline.compress import not_finite
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.runtime.out_of_memory import is_out_of_memory
from prunesid_cli.types import Encoded, Generation, Layout, Pixels, Prompt, TokenSet

STOCK = "stock"
STAGES = ("decode", "encode", "select", "project", "prefill", "decoding")
"""Open files and prepare pixels; the tower; choose; the prompt's embeddings, by the projector where that is in the
language half; to the first token; all further ones. The stock model projects where it encodes, and selects nothing."""
FIRST = STAGES[:-1]
"""Until the first token is there."""
CACHE = ("write", "read")
"""What a cache adds, which is no part of the whole."""
QUESTION, FILLING = "what is shown?", " and"


@dataclass(frozen=True)
class Round:
    """What a round of one setting took, and of what.

    tokens, kept   visual tokens of the batch, before and after
    text           other tokens of its prompts
    """

    laps: Mapping[str, Lap]
    tokens: int
    kept: int
    text: int


@dataclass(frozen=True)
class Measured:
    """All rounds of one setting (a budget, or STOCK) at one batch size, the warm-up first."""

    setting: str
    batch_size: int
    new_tokens: int
    rounds: Sequence[Round]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Of each lap for a whole batch: the median of the rounds after the first."""
        names = self.rounds[0].laps
        return {name: statistics.median(one.laps[name].seconds for one in self.rounds[1:]) for name in names}

    @property
    def whole(self) -> float:
        return sum(self.seconds[name] for name in STAGES)

    @property
    def to_first(self) -> float:
        return sum(self.seconds[name] for name in FIRST)

    @property
    def a_token(self) -> float:
        return self.seconds["decoding"] / (self.new_tokens - 1)

    @property
    def spread(self) -> float:
        """How many times as long as the shortest round the longest took."""
        wholes = [sum(one.laps[name].seconds for name in STAGES) for one in self.rounds[1:]]
        return max(wholes) / min(wholes)

    def mean(self, name: str) -> float:
        """Of tokens, kept or text: for an item."""
        return statistics.fmean(getattr(one, name) for one in self.rounds[1:]) / self.batch_size

    def most(self, name: str, stage: str | None = None) -> float | None:
        """Of grown_mb or peak_mb: in a stage, or in all; the warm-up counts, too."""
        laps = [lap for one in self.rounds for key, lap in one.laps.items() if stage in (None, key)]
        known = [value for lap in laps if (value := getattr(lap, name)) is not None]
        return max(known) if known else None


@dataclass(frozen=True)
class Bench:
    """What is measured: the rival, if there is one apart from `pruners`, and those, by budget, of one vision half;
    `sources`: files of pictures or clips; `text`: tokens of a prompt beside the visual ones."""

    stock: Stock | None
    pruners: Mapping[str, Pruner]
    language: LanguageHalf
    sources: Sequence[str]
    text: int
    new_tokens: int
    meter: Meter

    def run(self, batch_size: int, repeats: int) -> list[Measured]:
        """One warm-up, and the rounds that count; STOCK comes first.

        Raises:
            OutOfMemory: it does not fit into memory.
        """
        done: dict[str, list[Round]] = {}
        try:
            for number in range(1 + repeats):
                names = [self.sources[(number * batch_size + i) % len(self.sources)] for i in range(batch_size)]
                for setting, one in self.round(names):
                    done.setdefault(setting, []).append(one)
        except NonFiniteError as error:
            raise not_finite(names[error.rows[0]]) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _too_large(batch_size) from error
        return [Measured(setting, batch_size, self.new_tokens, rounds) for setting, rounds in done.items()]

    def round(self, names: Sequence[str]) -> Iterator[tuple[str, Round]]:
        """The same work once for each setting."""
        self.meter.begin()
        media, pixels = self.decoded(names)
        seen = {"decode": self.meter.lap()}
        encoded = next(iter(self.pruners.values())).encode(pixels)
        seen["encode"] = self.meter.lap()
        words = [worded(self.language, one.layout, self.text) for one in pixels]
        if self.stock:
            yield STOCK, self._rival(self.stock, names, words, pixels)
        for setting, pruner in self.pruners.items():
            yield setting, self._pruned(setting, pruner, encoded, words, seen)

    def decoded(self, names: Sequence[str]) -> tuple[list[Media], list[Pixels]]:
        pruner = next(iter(self.pruners.values()))
        media = [load_media(name, pruner.sampling) for name in names]
        return media, [pruner.preprocess(one) for one in media]

    def _rival(self, stock: Stock, names: Sequence[str], words: Sequence[str], pixels: Sequence[Pixels]) -> Round:
        self.meter.begin()
        inputs = inputs_of(self.language, [load_media(name, EVENLY) for name in names], words)
        laps, order = {"decode": self.meter.lap()}, iter(("encode", "prefill"))
        total, length = sum(one.layout.total for one in pixels), int(inputs["attention_mask"].sum())

        def told() -> None:
            name = next(order, None)
            if name:
                laps[name] = self.meter.lap()

        self.meter.begin()
        stock.generate(inputs, Generation(self.new_tokens, force_full_length=True, on_token=told), told)
        laps |= {"decoding": self.meter.lap(), "select": Lap(0.0), "project": Lap(0.0)}
        return Round(laps, total, total, length - total)

    def _pruned(
        self, setting: str, pruner: Pruner, encoded: Sequence[Encoded], words: Sequence[str], seen: Mapping[str, Lap]
    ) -> Round:
        self.meter.begin()
        items = pruner.prune(encoded)
        selected = self.meter.lap() if setting != STOCK else Lap(0.0)
        self.meter.begin()
        prompts = [self.language.embed(text, [item]) for text, item in zip(words, items, strict=True)]
        laps = {**seen, "select": selected, "project": self.meter.lap()}
        laps["prefill"], laps["decoding"] = self.generated(prompts)
        if setting != STOCK:
            laps["write"], laps["read"] = self.cached(items)
        kept = sum(item.kept for item in items)
        text = sum(len(one.embeds) - int(one.visual.sum()) for one in prompts)
        return Round(laps, sum(item.layout.total for item in items), kept, text)

    def generated(self, prompts: Sequence[Prompt]) -> tuple[Lap, Lap]:
        """To the first token of each answer, and to the last: as many as were asked for, whatever is said."""
        laps = list[Lap]()

        def told() -> None:
            if not laps:
                laps.append(self.meter.lap())

        self.meter.begin()
        self.language.generate(prompts, Generation(self.new_tokens, force_full_length=True, on_token=told))
        return laps[0], self.meter.lap()

    def cached(self, items: Sequence[TokenSet]) -> tuple[Lap, Lap]:
        """To the disk and back."""
        with TemporaryDirectory() as folder:
            self.meter.begin()
            cached.write(Path(folder), items)
            wrote = self.meter.lap()
            cached.read(Path(folder))
            return wrote, self.meter.lap()


def _too_large(batch_size: int) -> OutOfMemory:
    less = f"--batch-size {batch_size // 2}" if batch_size > 1 else "fewer --prompt-tokens"
    return OutOfMemory(
        f"not enough memory for --batch-size {batch_size}", f"try {less}, fewer --new-tokens or --dtype bf16"
    )


def worded(language: LanguageHalf, layout: Layout, wanted: int) -> str:
    """A prompt of so many tokens beside the visual ones, its template's included; no shorter than a question is."""

    def count(words: int) -> int:
        ids = language.tokenize(QUESTION + FILLING * words, [layout]).tolist()
        return sum(one not in language.placeholder_ids for one in ids)

    words = max(wanted - count(0), 0)
    while words and count(words) > wanted:
        words -= max((count(words) - wanted) // 2, 1)
    return QUESTION + FILLING * max(words, 0)
