"""Timing of all stages from images to answers, in batches.

The stages are those of `ask`, with a lap timer between them. Decoding and the vision tower do not depend on the budget
and run once per round; from selection on, the budgets take turns. They are compared with the stock model, or, where
that cannot be asked, with its equivalent: all tokens kept and none selected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prunesid_cli.bench.cache_io import read_cache, write_cache
from prunesid_cli.bench.results import STOCK, RoundResult, SettingResult
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

QUESTION, FILLER = "what is shown?", " and"


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
            text=sum(len(prompt.ids) - int(prompt.visual.sum()) for prompt in embedded),
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
