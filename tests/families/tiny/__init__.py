"""Tiny checkpoints of the real classes: the layout of the real ones, only narrower and shallower.

A family that is not here fails `test_every_family_has_a_tiny_model`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.families.tiny.base import Tiny

TINY = {
    "gemma3": "gemma3:PLAIN",
    "gemma3-crops": "gemma3:CROPS",
    "llava": "llava:PLAIN",
    "llava-full": "llava:FULL",
    "llava-last": "llava:LAST",
    "llava-layers": "llava:LAYERS",
    "llava-mistral": "llava:MISTRAL",
    "llava-original": "original:PLAIN",
    "llava-pixtral": "llava:PIXTRAL",
    "llava-qwen2": "llava:QWEN2",
    "llava-siglip": "llava:SIGLIP",
    "llava-siglip-last": "llava:SIGLIP_LAST",
}
"""Variant -> module:Tiny; the part before the first hyphen is the model_type."""


def tiny(variant: str) -> Tiny:
    module, name = TINY[variant].split(":")
    found: Tiny = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def write(variant: str, folder: Path) -> Path:
    """Make the checkpoint."""
    tiny(variant).write(folder)
    return folder
