"""From options to the halves of a model that a command needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import typer

from prunesid_cli.cli import config as settings
from prunesid_cli.cli.arguments import naming
from prunesid_cli.cli.choices import Attention, Dtype
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_SAMPLING, FrameSampling
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, Checkpoint, resolve
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget, Spread
from prunesid_cli.text import did_you_mean

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.models.base import LanguageHalf, VisionHalf
    from prunesid_cli.pipeline.pruner import Pruner
    from prunesid_cli.runtime.batch_size import BatchSizeTuner
    from prunesid_cli.types import Encoded, Pixels, Placement

DEMO_NOTE = (
    "using the embedded demo model, which knows only drawn scenes; "
    "choose a real one with: prunesid models use llava-1.5-7b, or keep this one with: prunesid models use demo"
)

ON_CPU = 8
FIRST, MOST = 8, 1024
"""Of a batch that grows."""


@dataclass(frozen=True)
class Hardware:
    device: str
    dtype: Dtype
    attention: Attention


class LazyVision:
    """A vision half that is loaded when something is first asked of it; once, whichever thread asks."""

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

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        return self.load().preprocess(media, num_other_images)

    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        return self.load().encode(items)

    def __getattr__(self, name: str) -> Any:
        """What some vision halves have beyond the protocol."""
        return getattr(self.load(), name)


@dataclass(frozen=True)
class Session:
    """A checkpoint that was found and is supported, and where to run it."""

    checkpoint: Checkpoint
    placement: Placement

    @classmethod
    def open(cls, model: str | None, revision: str | None, hardware: Hardware) -> Session:
        """Check all that can be checked before weights are read."""
        settings.load_config()
        if model is None:
            printer.note(DEMO_NOTE)
        return cls.of(resolve(model or DEMO, revision), hardware)

    @classmethod
    def of(cls, checkpoint: Checkpoint, hardware: Hardware) -> Session:
        """The same for a checkpoint that was found already."""
        family = load_family(checkpoint.model_type)
        from prunesid_cli.models.loading.placement import choose_placement
        from prunesid_cli.models.loading.weights import load_config

        family.check_supported(checkpoint)
        placement = choose_placement(hardware.device, hardware.dtype.value, hardware.attention.value, load_config(checkpoint))
        printer.detail(f"{checkpoint.model_type} model {checkpoint.name}, revision {checkpoint.revision}")
        printer.detail(f"device {placement.device}, dtype {placement.dtype}, attention {placement.attention}")
        return cls(checkpoint, placement)

    def pruner(
        self,
        budget: Budget,
        method: str,
        sample: Sequence[float] = (),
        sampling: FrameSampling = DEFAULT_SAMPLING,
        vision: VisionHalf | None = None,
    ) -> Pruner:
        """sample: the information of typical images, where it is known better than the checkpoint knows it. vision: to
        be loaded now, where none is given."""
        from prunesid_cli.pipeline.pruner import Pruner

        return Pruner(vision or self.vision(), budget, method, sample or self.checkpoint.typical_information, sampling)

    def vision(self) -> VisionHalf:
        return load_family(self.checkpoint.model_type).load_vision_half(self.checkpoint, self.placement)

    def language(self) -> LanguageHalf:
        return load_family(self.checkpoint.model_type).load_language_half(self.checkpoint, self.placement)

    @property
    def dtype_name(self) -> str:
        return str(self.placement.dtype).removeprefix("torch.")

    def batch_size(self, asked: int) -> int:
        return asked or (ON_CPU if self.placement.device.type == "cpu" else 32)

    def pace(self, asked: int) -> BatchSizeTuner:
        """How many pictures, tiles and frames the tower sees at once. More than a few gain nothing on a CPU."""
        from prunesid_cli.runtime.batch_size import BatchSizeTuner

        if asked or self.placement.device.type == "cpu":
            return BatchSizeTuner.fixed(asked or ON_CPU)
        return BatchSizeTuner(FIRST, MOST)


def read_budget(context: typer.Context, keep: str, dynamic: bool | None, method: str) -> Budget:
    """What a user asked to keep, checked before anything is loaded.

    dynamic: None spreads by information over the tiles and frames of an item, True over items, too, False over none.
    """
    with naming(context, "method"):
        if method not in METHODS:
            hint = did_you_mean(method, METHODS, f"one of: {', '.join(METHODS)}")
            raise UsageError(f"no selection method called {method!r}", hint)
    with naming(context, "keep"):
        return Budget.parse(keep, Spread.from_option(dynamic))
