"""Opens a model: finds its checkpoint, checks it, chooses device and precision, and loads either half on demand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from prunesid_cli.errors import CacheError
from prunesid_cli.models import FAMILIES, load_family
from prunesid_cli.models.loading.checkpoint import DEMO, Checkpoint, resolve
from prunesid_cli.pipeline.settings import Fit, Settings, TokenStore
from prunesid_cli.selection.budget import Spread
from prunesid_cli.text import STATUS
from prunesid_cli.tokencache import Run

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.models.base import LanguageHalf, VisionHalf
    from prunesid_cli.pipeline.pruner import Pruner
    from prunesid_cli.runtime.batch_size import BatchSizeTuner
    from prunesid_cli.selection.budget import Budget
    from prunesid_cli.types import Encoded, Pixels, Placement

logger = logging.getLogger(__name__)

DEMO_NOTE = (
    "using the embedded demo model, which knows only drawn scenes; "
    "choose a real one with: prunesid models use llava-1.5-7b, or keep this one with: prunesid models use demo"
)
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 8, 32
"""Items of a batch that is encoded and answered."""
FIRST_TOWER_BATCH, MAX_TOWER_BATCH = 8, 1024
"""Bounds of the vision tower's batch on a GPU, in images. It grows as long as that increases throughput."""
CPU_ANSWER_BATCH = 64
FIRST_ANSWER_BATCH, MAX_ANSWER_BATCH = 32, 512
"""Bounds of a batch of prompts on a GPU, about cached items. It grows as the tower's."""


@dataclass(frozen=True)
class Session:
    """A checkpoint that was found and is supported, and where it runs. Weights are read when a half is loaded."""

    checkpoint: Checkpoint
    placement: Placement
    settings: Settings

    @classmethod
    def open(cls, settings: Settings, checkpoint: Checkpoint | None = None) -> Session:
        """Checks all that can be checked before weights are read.

        Args:
            settings: Which model, and where to run it.
            checkpoint: The model, if it was found already.

        Raises:
            ModelError: There is no such model, or it is not supported.
            UsageError: There is no such device.
        """
        checkpoint = checkpoint or find_checkpoint(settings)
        logger.log(STATUS, "loading %s ...", checkpoint.name)
        family = load_family(checkpoint.model_type)
        from prunesid_cli.models.loading.placement import choose_placement
        from prunesid_cli.models.loading.weights import load_config

        family.check_supported(checkpoint)
        placement = choose_placement(
            settings.device, settings.dtype.value, settings.attention.value, load_config(checkpoint)
        )
        if checkpoint.model_type not in FAMILIES:
            from prunesid_cli.models.spliced.trial import try_type

            checkpoint = try_type(checkpoint, placement)
        logger.debug("%s model %s, revision %s", checkpoint.model_type, checkpoint.name, checkpoint.revision)
        attention = placement.attention or "sdpa where supported"
        logger.debug("device %s, dtype %s, attention %s", placement.device, placement.dtype, attention)
        return cls(checkpoint, placement, settings)

    def load_vision(self) -> VisionHalf:
        """Reads the weights of the vision half."""
        vision = load_family(self.checkpoint.model_type).load_vision_half(self.checkpoint, self.placement)
        if self.settings.fit is Fit.pad and hasattr(vision, "pad_to_square"):
            vision.pad_to_square()
        return vision

    def load_language(self, has_layers: bool = True) -> LanguageHalf:
        """Reads the weights of the language half. Without layers, it makes prompts that another engine answers."""
        placement = (
            self.placement if has_layers else replace(self.placement, multi_gpu=False, has_language_layers=False)
        )
        language = load_family(self.checkpoint.model_type).load_language_half(self.checkpoint, placement)
        language.allow_special_tokens, language.system = self.settings.allow_special_tokens, self.settings.system
        return language

    def pruner(
        self, budget: Budget | None = None, sample: Sequence[float] = (), vision: VisionHalf | None = None
    ) -> Pruner:
        """A pruner by the settings.

        Args:
            budget: The budget; None: that of the settings.
            sample: Information (phi) of typical images; empty: what the checkpoint says of them.
            vision: The vision half; None: it is loaded now.
        """
        from prunesid_cli.pipeline.pruner import Pruner

        return Pruner(
            vision=vision or self.load_vision(),
            budget=budget or self.settings.budget(),
            method=self.settings.method,
            sample=sample or self.checkpoint.typical_information,
            sampling=self.settings.sampling(),
            decoding=self.settings.decoding(),
        )

    @property
    def dtype_name(self) -> str:
        """The precision, as torch calls it: `float32`."""
        return str(self.placement.dtype).removeprefix("torch.")

    @property
    def batch_size(self) -> int:
        """How many items are encoded and answered together, in commands that do both."""
        return self.settings.batch_size or (CPU_BATCH_SIZE if self.placement.device.type == "cpu" else GPU_BATCH_SIZE)

    def answer_batch_size(self) -> BatchSizeTuner:
        """How many prompts about cached items are answered together."""
        from prunesid_cli.runtime.batch_size import BatchSizeTuner

        if self.settings.batch_size or self.placement.device.type == "cpu":
            return BatchSizeTuner.fixed(self.settings.batch_size or CPU_ANSWER_BATCH)
        return BatchSizeTuner(FIRST_ANSWER_BATCH, MAX_ANSWER_BATCH)

    def tower_batch_size(self) -> BatchSizeTuner:
        """How many pictures, tiles and frames the vision tower encodes together. More gain nothing on a CPU."""
        from prunesid_cli.runtime.batch_size import BatchSizeTuner

        if self.settings.batch_size or self.placement.device.type == "cpu":
            return BatchSizeTuner.fixed(self.settings.batch_size or CPU_BATCH_SIZE)
        return BatchSizeTuner(FIRST_TOWER_BATCH, MAX_TOWER_BATCH)


def find_checkpoint(settings: Settings) -> Checkpoint:
    """Finds the model of the settings, without torch.

    Raises:
        ModelError: There is no such model.
    """
    if settings.model is None:
        logger.info(DEMO_NOTE)
    return resolve(settings.model or DEMO, settings.revision)


def make_run(checkpoint: Checkpoint, settings: Settings, budget: Budget, dtype: str, store: TokenStore) -> Run:
    """What all items of a cache that is made with these settings have in common.

    Args:
        checkpoint: The model.
        settings: Its settings.
        budget: The budget.
        dtype: The precision, as torch calls it.
        store: How tokens are stored.
    """
    return Run(
        model=checkpoint.name,
        revision=checkpoint.revision,
        family=checkpoint.model_type,
        method=settings.method,
        keep=str(budget),
        dynamic=budget.spread is Spread.ACROSS_ITEMS,
        even=budget.spread is Spread.NONE,
        dtype=dtype,
        store=store.value,
        fit=settings.fit.value,
    )


def check_cache_model(run: Run, checkpoint: Checkpoint) -> None:
    """Raises `CacheError` if a cache was made with another model: its tokens would be read wrongly."""
    if checkpoint.revision != run.revision or checkpoint.model_type != run.family:
        made_with, given = f"{run.model} at {run.revision}", f"{checkpoint.name} at {checkpoint.revision}"
        hint = "leave out --model and --revision, or compress again with this one"
        raise CacheError(f"the cache holds tokens of {made_with}, not of {given}", hint)


class LazyVision:
    """A vision half that is loaded when it is first used; once, whichever thread uses it first."""

    def __init__(self, load: Callable[[], VisionHalf]) -> None:
        self._load, self._lock = load, Lock()
        self._half: VisionHalf | None = None

    def load(self) -> VisionHalf:
        with self._lock:
            self._half = self._half or self._load()
            return self._half

    @property
    def is_loaded(self) -> bool:
        return self._half is not None

    def __getattr__(self, name: str) -> Any:
        """Methods and attributes of the vision half."""
        return getattr(self.load(), name)

    if TYPE_CHECKING:

        def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels: ...

        def encode(self, items: Sequence[Pixels]) -> list[Encoded]: ...
