"""Values of options that have a few."""

from __future__ import annotations

from enum import Enum


class Dtype(str, Enum):
    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Attention(str, Enum):
    auto = "auto"
    sdpa = "sdpa"
    flash = "flash_attention_2"
    eager = "eager"


class Backend(str, Enum):
    auto = "auto"
    decord = "decord"
    pyav = "pyav"


class Stored(str, Enum):
    model = "model"
    fp8 = "fp8"
    int8 = "int8"
