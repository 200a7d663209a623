"""What users can choose, with defaults: one table for the command line, the Python API and the lmms-eval plug-in.

Needs no torch, so that a command line can be checked at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.decoding import Decoding
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES, FrameSampling
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget, Spread
from prunesid_cli.text import did_you_mean


class Dtype(str, Enum):
    """Precision of a model; auto is fp32 on a CPU and the checkpoint's own elsewhere."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Attention(str, Enum):
    """Attention kernels; auto is sdpa where a part of the model supports it, else eager."""

    auto = "auto"
    sdpa = "sdpa"
    flash = "flash_attention_2"
    eager = "eager"


class VideoBackend(str, Enum):
    """Clip decoders; auto is pyav."""

    auto = "auto"
    decord = "decord"
    pyav = "pyav"


class Fit(str, Enum):
    """What is done with images that are not square, for models that read squares and crop; crop is the checkpoint's."""

    crop = "crop"
    pad = "pad"


class TokenStore(str, Enum):
    """How a cache stores tokens; model is the model's own precision."""

    model = "model"
    fp8 = "fp8"
    int8 = "int8"


class AskedBy(str, Enum):
    """What answer asks about once."""

    content = "content"
    path = "path"


class Engine(str, Enum):
    """What runs the language model in answer."""

    builtin = "builtin"
    vllm = "vllm"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which model runs where, which tokens it keeps, how clips are read, and how answers are generated.

    Attributes:
        model: A Hugging Face repo id, a folder or an alias; None: the embedded model.
        revision: Branch, tag or commit of a repo.
        keep: Visual tokens to keep of each item: a number ("64"), a share ("11%") or "all".
        dynamic: Spread the budget by information over items (True), over the tiles and frames of an item (None), or
            over nothing (False).
        method: A name of `selection.METHODS`.
        fit: Whether models that crop images to squares pad them instead.
        frames: Frames of each clip, spread evenly over its time.
        fps: Frames per second of each clip, instead of `frames`.
        window: Successive frames that are pruned together.
        video_backend: Clip decoder.
        strict: Refuse inputs whose data is damaged, even if they can be decoded.
        timeout: Seconds after which decoding of an input is given up; 0: never. None: see `inputs.decoding.Decoding`.
        device: "auto", "cpu", "cuda:0", "mps".
        dtype: Precision.
        attention: Attention kernels.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 decodes greedily.
        seed: Seed of sampling, with a temperature.
        system: A system prompt; empty: that of the chat template, if it has one.
        allow_special_tokens: Whether special tokens in a prompt have their meaning, instead of being text.
        batch_size: Items per batch; 0: chosen by the device.
        workers: Processes that decode inputs; 0: decode in this process. None: chosen by cores and device. A pair is
            the fewest and the most workers of a cluster.
    """

    model: str | None = None
    revision: str | None = None
    keep: str = "11%"
    dynamic: bool | None = None
    method: str = "prunesid"
    fit: Fit = Fit.crop
    frames: int = DEFAULT_FRAMES
    fps: float | None = None
    window: int = 1
    video_backend: VideoBackend = VideoBackend.auto
    strict: bool = False
    timeout: float | None = None
    device: str = "auto"
    dtype: Dtype = Dtype.auto
    attention: Attention = Attention.auto
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    system: str = ""
    allow_special_tokens: bool = False
    batch_size: int = 0
    workers: int | tuple[int, int] | None = None

    def check_method(self) -> None:
        """Raises `UsageError` if there is no such method."""
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS, f"one of: {', '.join(METHODS)}")
            raise UsageError(f"no selection method called '{self.method}'", hint)

    def budget(self) -> Budget:
        """The budget that `keep` and `dynamic` mean. Raises `UsageError` if `keep` cannot be read."""
        return Budget.parse(self.keep, Spread.from_option(self.dynamic))

    def sampling(self) -> FrameSampling:
        """How frames of clips are chosen. Raises `UsageError` if `fps` is not a rate."""
        if self.fps is None:
            return FrameSampling(self.frames, None, self.video_backend.value, self.window)
        if not 0 < self.fps < math.inf:
            raise UsageError(f"--fps {self.fps:g} is not a rate", "frames a second: 1, or 0.5 for one in two seconds")
        return FrameSampling(DEFAULT_FRAMES, self.fps, self.video_backend.value, self.window)

    def decoding(self) -> Decoding:
        """How strictly and for how long inputs are decoded. Raises `UsageError` if `timeout` is not a time."""
        if self.timeout is not None and not 0 <= self.timeout < math.inf:
            raise UsageError(f"--timeout {self.timeout:g} is not a time", "seconds: 60; 0 is no limit")
        return Decoding(self.strict, self.timeout)


DEFAULTS = Settings()
