"""`--model_args` of lmms-eval -> settings, checked before weights are read.

The arguments are the options of `prunesid ask`, with the defaults of `pipeline.settings`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.video.frame_sampling import MAX_FRAMES
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.models.loading.checkpoint import DEMO
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import Attention, Dtype, Fit, Settings
from prunesid_cli.types import DTYPE_NAMES

Value = str | int | float | bool | None
"""lmms-eval turns what looks like a number or a truth value into one."""
E = TypeVar("E", bound=Enum)
AUTO = "auto"


@dataclass(frozen=True)
class LoadedModel:
    """Both halves of a model.

    Attributes:
        pruner: The vision half, with budget and method.
        language: The language half.
        batch_size: Prompts that are answered together.
        device: Device of the language half.
    """

    pruner: Pruner
    language: LanguageHalf
    batch_size: int
    device: str


def load(arguments: Mapping[str, Value]) -> LoadedModel:
    """Load both halves of the model that the arguments name.

    Raises:
        UsageError: An argument is unknown or makes no sense.
    """
    settings = read_settings(arguments)
    settings.check_method()
    budget = settings.budget()
    session = Session.open(settings)
    return LoadedModel(
        pruner=session.pruner(budget),
        language=session.load_language(),
        batch_size=session.batch_size,
        device=str(session.placement.device),
    )


def read_settings(arguments: Mapping[str, Value]) -> Settings:
    """Read settings from arguments; those that are missing or None have their defaults.

    Raises:
        UsageError: An argument is unknown or makes no sense.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    known = (*ARGUMENTS, TRUST_REMOTE_CODE)
    unknown = sorted(arguments.keys() - set(known))
    if unknown:
        raise UsageError(f"no model argument {unknown[0]!r}", f"one of: {', '.join(known)}")
    if "pretrained" not in given:
        raise UsageError("no model is named", f"pretrained=llava-hf/llava-1.5-7b-hf; {DEMO} is the embedded one")
    if given.pop(TRUST_REMOTE_CODE, False):
        raise UsageError("no supported model needs code of its own", f"leave out {TRUST_REMOTE_CODE}")
    if "frames" in given and "fps" in given:
        raise UsageError("frames and fps contradict each other", "leave out one")
    given.setdefault("device", AUTO)
    values = {}
    for name, value in given.items():
        field, parse = ARGUMENTS[name]
        values[field] = parse(name, value)
    return Settings(**values)


def _text(name: str, value: Value) -> str:
    return str(value)


def _flag(name: str, value: Value) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}={value} is neither true nor false", "give true or false, or leave it out")
    return value


def _frame_count(name: str, value: Value) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_FRAMES:
        raise UsageError(f"{name}={value} is not a number of frames", f"1 to {MAX_FRAMES}")
    return value


def _rate(name: str, value: Value) -> float:
    if isinstance(value, str) or value is None or not 0 < value < math.inf:
        raise UsageError(f"{name}={value} is not a rate", "frames a second: 1, or 0.5 for one in two seconds")
    return value


def _device(name: str, value: Value) -> str:
    """Under several processes, each gets a GPU of its own, unless one is named by its number."""
    device, rank = str(value), os.environ.get("LOCAL_RANK", "0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and device in (AUTO, "cuda"):
        import torch

        return f"cuda:{rank}" if torch.cuda.is_available() else device
    return device


def _dtype(name: str, value: Value) -> Dtype:
    text = str(value)
    return _member(Dtype, name, {full: short for short, full in DTYPE_NAMES.items()}.get(text, text))


def _fit(name: str, value: Value) -> Fit:
    return _member(Fit, name, value)


def _attention(name: str, value: Value) -> Attention:
    return _member(Attention, name, value)


def _member(kind: type[E], name: str, value: Value) -> E:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(str(member.value) for member in kind)
        raise UsageError(f"{name}={value} is unknown", f"one of: {known}") from error


def _batch_size(name: str, value: Value) -> int:
    """lmms-eval passes what --batch_size says, as text."""
    text = str(value)
    if text == AUTO:
        return 0
    if not text.isdecimal():
        raise UsageError(f"--{name} {text} is not a number", "1, 8 or auto")
    return int(text)


TRUST_REMOTE_CODE = "trust_remote_code"
"""An argument that lmms-eval users often give; it may only be false."""
ARGUMENTS: Mapping[str, tuple[str, Callable[[str, Value], Any]]] = {
    "pretrained": ("model", _text),
    "revision": ("revision", _text),
    "keep": ("keep", _text),
    "dynamic": ("dynamic", _flag),
    "method": ("method", _text),
    "fit": ("fit", _fit),
    "frames": ("frames", _frame_count),
    "fps": ("fps", _rate),
    "window": ("window", _frame_count),
    "device": ("device", _device),
    "dtype": ("dtype", _dtype),
    "attn": ("attention", _attention),
    "allow_special_tokens": ("allow_special_tokens", _flag),
    "batch_size": ("batch_size", _batch_size),
}
"""Argument -> field of `Settings`, and how its value is read. lmms-eval's tasks choose what is left out here."""
