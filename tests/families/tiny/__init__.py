"""Tiny checkpoints of the real classes: the layout of the real ones, only narrower and shallower.

A family that is not here fails `test_every_family_has_a_tiny_model`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.families.tiny.base import Tiny

TINY = {
    "llava": "llava:PLAIN",
    "llava-full": "llava:FULL",
    "llava-last": "llava:LAST",
    "llava_onevision": "llava_onevision:PLAIN",
    "llava_onevision-earlier": "llava_onevision:EARLIER",
    "llava_onevision-real": "llava_onevision:REAL",
    "video_llava": "video_llava:PLAIN",
    "video_llava-full": "video_llava:FULL",
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
