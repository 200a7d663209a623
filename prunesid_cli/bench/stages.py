"""Timing of all stages from images to answers, in batches.

The stages are those of `ask`, with a lap timer between them. Decoding and the vision tower do not depend on the budget
and run once per round; from selection on, the budgets take turns. They are compared with the stock model, or, where
that cannot be asked, with its equivalent: all tokens kept and none selected.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from prunesid_cli.bench.cache_io import read_cache, write_cache
from prunesid_cli.bench.stock_model import StockModel, stock_inputs
from prunesid_cli.bench.timing import Lap, LapTimer
from prunesid_cli.errors import NonFiniteError, OutOfMemory, non_finite_error
from prunesid_cli.inputs.image import Media
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_SAMPLING
from prunesid_cli.inputs.video.load import load_media
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.runtime.out_of_memory import is_out_of_memory
from prunesid_cli.types import Encoded, Generation, Layout, Pixels, Prompt, TokenSet

STOCK = "stock"
"""Name of the setting without pruning that all others are compared with."""
STAGES = ("decode", "encode", "select", "project", "prefill", "decoding")
"""Open files and prepare pixels; run the tower; select tokens; embed the prompt (which runs the projector where that is
in the language half); generate the first token; generate the further tokens. The stock model runs its projector in
"encode" and selects nothing."""
STAGES_TO_FIRST_TOKEN = STAGES[:-1]
CACHE_STAGES = ("write", "read")
"""Laps of a cache, which do not count in the total."""
QUESTION, FILLER = "what is shown?", " and"


@dataclass(frozen=True)
class RoundResult:
    """One round of one setting.

    Attributes:
        laps: Stage -> its lap.
        tokens: Visual tokens of the batch before pruning.
        kept: Visual tokens of the batch after pruning.
        text: Other tokens of the prompts.
    """

    laps: Mapping[str, Lap]
    tokens: int
    kept: int
    text: int


@dataclass(frozen=True)
class SettingResult:
    """All rounds of one setting at one batch size.

    Attributes:
        setting: A budget as given to --keep, or `STOCK`.
        batch_size: Items per batch.
        new_tokens: Tokens of each answer.
        rounds: The rounds; the first one is the warm-up.
    """

    setting: str
    batch_size: int
    new_tokens: int
    rounds: Sequence[RoundResult]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of each lap for a whole batch: the median of the rounds after the warm-up."""
        names = self.rounds[0].laps
        return {name: statistics.median(result.laps[name].seconds for result in self.rounds[1:]) for name in names}

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds[name] for name in STAGES)

    @property
    def seconds_to_first_token(self) -> float:
        return sum(self.seconds[name] for name in STAGES_TO_FIRST_TOKEN)

    @property
    def seconds_per_token(self) -> float:
        """Seconds of each token after the first."""
        return self.seconds["decoding"] / (self.new_tokens - 1)

    @property
    def spread(self) -> float:
        """Duration of the longest round divided by that of the shortest."""
        totals = [sum(result.laps[name].seconds for name in STAGES) for result in self.rounds[1:]]
        return max(totals) / min(totals)

    @property
    def is_pruned(self) -> bool:
        return self.mean("kept") < self.mean("tokens")

    def mean(self, name: str) -> float:
        """Mean per item of `tokens`, `kept` or `text`."""
        return statistics.fmean(getattr(result, name) for result in self.rounds[1:]) / self.batch_size

    def maximum(self, name: str, stage: str | None = None) -> float | None:
        """Maximum of `grown_mb` or `peak_mb` over all rounds, the warm-up included: of one stage, or of all."""
        laps = [lap for result in self.rounds for key, lap in result.laps.items() if stage in (None, key)]
        values = [value for lap in laps if (value := getattr(lap, name)) is not None]
        return max(values) if values else None


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        stock: The stock model; None if a setting `STOCK` of `pruners` takes its place.
        pruners: Setting -> its pruner; all have the same vision half.
        language: The language half.
        sources: Files of pictures or clips, used in turn.
        prompt_tokens: Tokens of a prompt other than visual ones.
        new_tokens: Tokens of each answer.
        timer: Times the stages.
    """

    stock: StockModel | None
    pruners: Mapping[str, Pruner]
    language: LanguageHalf
    sources: Sequence[str]
    prompt_tokens: int
    new_tokens: int
    timer: LapTimer

    def run(self, batch_size: int, rounds: int) -> list[SettingResult]:
        """Run a warm-up and then `rounds` rounds. The setting `STOCK` comes first.

        Raises:
            OutOfMemory: The batch does not fit into memory.
        """
        results: dict[str, list[RoundResult]] = {}
        try:
            for number in range(1 + rounds):
                sources = [self.sources[(number * batch_size + i) % len(self.sources)] for i in range(batch_size)]
                for setting, result in self._run_round(sources):
                    results.setdefault(setting, []).append(result)
        except NonFiniteError as error:
            raise non_finite_error(sources[error.rows[0]]) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            less = f"--batch-size {batch_size // 2}" if batch_size > 1 else "fewer --prompt-tokens"
            raise OutOfMemory(
                f"not enough memory for --batch-size {batch_size}", f"try {less}, fewer --new-tokens or --dtype bf16"
            ) from error
        return [SettingResult(setting, batch_size, self.new_tokens, done) for setting, done in results.items()]

    def load(self, sources: Sequence[str]) -> tuple[list[Media], list[Pixels]]:
        """Decode files, and prepare them for the tower."""
        pruner = next(iter(self.pruners.values()))
        media = [load_media(source, pruner.sampling) for source in sources]
        return media, [pruner.preprocess(item) for item in media]

    def _run_round(self, sources: Sequence[str]) -> Iterator[tuple[str, RoundResult]]:
        """Do the same work once for each setting."""
        self.timer.start()
        _, pixels = self.load(sources)
        shared_laps = {"decode": self.timer.lap()}
        encoded = next(iter(self.pruners.values())).encode(pixels)
        shared_laps["encode"] = self.timer.lap()
        prompts = [make_prompt(self.language, item.layout, self.prompt_tokens) for item in pixels]
        if self.stock:
            yield STOCK, self._run_stock(self.stock, sources, prompts, pixels)
        for setting, pruner in self.pruners.items():
            yield setting, self._run_pruned(setting, pruner, encoded, prompts, shared_laps)

    def _run_stock(
        self, stock: StockModel, sources: Sequence[str], prompts: Sequence[str], pixels: Sequence[Pixels]
    ) -> RoundResult:
        self.timer.start()
        inputs = stock_inputs(self.language, [load_media(source, DEFAULT_SAMPLING) for source in sources], prompts)
        laps = {"decode": self.timer.lap()}
        total = sum(item.layout.total for item in pixels)
        prompt_length = int(inputs["attention_mask"].sum())
        stages = iter(("encode", "prefill"))

        def end_stage() -> None:
            """Ends "encode" when the language model starts, "prefill" at the first token, and nothing later."""
            stage = next(stages, None)
            if stage:
                laps[stage] = self.timer.lap()

        self.timer.start()
        generation = Generation(self.new_tokens, force_full_length=True, on_token=end_stage)
        stock.generate(inputs, generation, on_prefill=end_stage)
        laps |= {"decoding": self.timer.lap(), "select": Lap(0.0), "project": Lap(0.0)}
        return RoundResult(laps, tokens=total, kept=total, text=prompt_length - total)

    def _run_pruned(
        self,
        setting: str,
        pruner: Pruner,
        encoded: Sequence[Encoded],
        prompts: Sequence[str],
        shared_laps: Mapping[str, Lap],
    ) -> RoundResult:
        laps = dict(shared_laps)
        self.timer.start()
        items = pruner.prune(encoded)
        laps["select"] = self.timer.lap() if setting != STOCK else Lap(0.0)
        self.timer.start()
        embedded = [self.language.embed(prompt, [item]) for prompt, item in zip(prompts, items, strict=True)]
        laps["project"] = self.timer.lap()
        laps["prefill"], laps["decoding"] = self._generate(embedded)
        if setting != STOCK:
            laps["write"], laps["read"] = self._use_cache(items)
        return RoundResult(
            laps,
            tokens=sum(item.layout.total for item in items),
            kept=sum(item.kept for item in items),
            text=sum(len(prompt.embeds) - int(prompt.visual.sum()) for prompt in embedded),
        )

    def _generate(self, prompts: Sequence[Prompt]) -> tuple[Lap, Lap]:
        """Time to the first token of the answers, and from there to the last; answers have their full length."""
        prefill = list[Lap]()

        def end_prefill() -> None:
            if not prefill:
                prefill.append(self.timer.lap())

        self.timer.start()
        self.language.generate(prompts, Generation(self.new_tokens, force_full_length=True, on_token=end_prefill))
        return prefill[0], self.timer.lap()

    def _use_cache(self, items: Sequence[TokenSet]) -> tuple[Lap, Lap]:
        """Time to write a cache, and to read it."""
        with TemporaryDirectory() as folder:
            self.timer.start()
            write_cache(Path(folder), items)
            write_lap = self.timer.lap()
            read_cache(Path(folder))
            return write_lap, self.timer.lap()


def make_prompt(language: LanguageHalf, layout: Layout, num_tokens: int) -> str:
    """Return a prompt of `num_tokens` tokens other than visual ones, those of the chat template included.

    It is no shorter than `QUESTION`.
    """

    def count_tokens(num_fillers: int) -> int:
        ids = language.tokenize(QUESTION + FILLER * num_fillers, [layout]).tolist()
        return sum(token not in language.placeholder_ids for token in ids)

    num_fillers = max(num_tokens - count_tokens(0), 0)
    while num_fillers and count_tokens(num_fillers) > num_tokens:
        num_fillers -= max((count_tokens(num_fillers) - num_tokens) // 2, 1)
    return QUESTION + FILLER * max(num_fillers, 0)
