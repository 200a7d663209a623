"""From `--model_args` to what is loaded: all that can be checked is checked before weights are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from prunesid_cli.cli.choices import Attention, Dtype
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES, MAX_FRAMES, FrameSampling
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.models.loading.checkpoint import DEMO
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Hardware, Session
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget, Spread

Value = str | int | float | bool | None
"""lmms-eval reads what looks like a number or a truth value as one."""
AUTO = "auto"
TORCH_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
DEFAULTS: Mapping[str, Value] = {
    "pretrained": None,
    "revision": None,
    "keep": "11%",
    "dynamic": None,
    "method": "prunesid",
    "frames": None,
    "fps": None,
    "window": 1,
    "device": AUTO,
    "dtype": AUTO,
    "attn": AUTO,
    "batch_size": 0,
    "trust_remote_code": False,
}
"""Names and meanings are those of the options of `prunesid ask`; `pretrained` is its `--model`."""
E1 = TypeVar("E1", bound=Enum)


@dataclass(frozen=True)
class Loaded:
    """Both halves of a model, how many prompts are answered at once, and the device of the language half."""

    pruner: Pruner
    language: LanguageHalf
    batch_size: int
    device: str


def load(given: Mapping[str, Value]) -> Loaded:
    """Open the checkpoint that the arguments name, and load both halves.

    Raises:
        UsageError: an argument is unknown or makes no sense.
    """
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise UsageError(f"no model argument {unknown[0]!r}", f"one of: {', '.join(DEFAULTS)}")
    args = {**DEFAULTS, **given}
    if args["pretrained"] is None:
        raise UsageError("no model is named", f"pretrained=llava-hf/llava-1.5-7b-hf; {DEMO} is the embedded one")
    if args["trust_remote_code"]:
        raise UsageError("no model that is supported here needs code of its own", "leave out trust_remote_code")
    method, budget, sampling = _method(args), _budget(args), _sampling(args)
    batch_size = _batch_size(args["batch_size"])
    hardware = Hardware(_device(args), _dtype(args), _member(Attention, "attn", args["attn"]))
    session = Session.open(_text(args["pretrained"]), _text(args["revision"]), hardware)
    pruner = session.pruner(budget, method, sampling=sampling)
    return Loaded(pruner, session.language(), session.batch_size(batch_size), str(session.placement.device))


def _method(args: Mapping[str, Value]) -> str:
    method = str(args["method"])
    if method not in METHODS:
        raise UsageError(f"no selection method called {method!r}", f"one of: {', '.join(METHODS)}")
    return method


def _budget(args: Mapping[str, Value]) -> Budget:
    dynamic = args["dynamic"]
    if not isinstance(dynamic, bool | None):
        raise UsageError(f"dynamic={dynamic} is neither true nor false", "leave it out to spread over tiles and frames")
    return Budget.parse(str(args["keep"]), Spread.from_option(dynamic))


def _sampling(args: Mapping[str, Value]) -> FrameSampling:
    frames, fps = args["frames"], args["fps"]
    if frames is not None and fps is not None:
        raise UsageError("frames and fps contradict each other", "leave out one")
    frames = _count("frames", DEFAULT_FRAMES if frames is None else frames)
    if fps is not None and (isinstance(fps, str) or not 0 < fps < float("inf")):
        raise UsageError(f"fps={fps} is no rate", "frames a second: 1, or 0.5 for one in two seconds")
    return FrameSampling(frames, fps, window=_count("window", args["window"]))


def _count(name: str, value: Value) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_FRAMES:
        raise UsageError(f"{name}={value} is no number of frames", f"1 to {MAX_FRAMES}")
    return value


def _batch_size(value: Value) -> int:
    """lmms-eval hands over what --batch_size says, as text. 0: chosen by the device."""
    text = str(value)
    if text == AUTO:
        return 0
    if not text.isdecimal():
        raise UsageError(f"--batch_size {text} is no number", "1, 8 or auto")
    return int(text)


def _device(args: Mapping[str, Value]) -> str:
    """Each of several processes has a GPU of its own, unless one was asked for by its number."""
    asked, rank = str(args["device"]), os.environ.get("LOCAL_RANK", "0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and asked in (AUTO, "cuda"):
        import torch

        return f"cuda:{rank}" if torch.cuda.is_available() else asked
    return asked


def _dtype(args: Mapping[str, Value]) -> Dtype:
    name = str(args["dtype"])
    return _member(Dtype, "dtype", TORCH_NAMES.get(name, name))


def _member(kind: type[E1], name: str, value: Value) -> E1:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(str(one.value) for one in kind)
        raise UsageError(f"{name}={value} is unknown", f"one of: {known}") from error


def _text(value: Value) -> str | None:
    return None if value is None else str(value)
