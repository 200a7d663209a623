"""Tiny checkpoints of the real classes: the layout of the real ones, only narrower and shallower.

A family that is not here fails `test_every_family_has_a_tiny_model`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.families.tiny.base import Tiny

TINY = {
    "idefics3": "idefics3:PLAIN",
    "idefics3-long": "idefics3:LONG",
    "idefics3-whole": "idefics3:WHOLE",
    "idefics3-smolvlm": "idefics3:SMOLVLM1",
    "smolvlm": "idefics3:SMOLVLM2",
    "internvl": "internvl:PLAIN",
    "internvl-large": "internvl:LARGE",
    "internvl-inner": "internvl:INNER",
    "llava": "llava:PLAIN",
    "llava-full": "llava:FULL",
    "llava-last": "llava:LAST",
    "mgm": "mgm:VICUNA",
    "mgm-hd": "mgm:HD",
    "mgm_gemma": "mgm:GEMMA",
    "mgm_mixtral": "mgm:MIXTRAL",
    "mini_gemini": "mgm:OLD_VICUNA",
    "mini_gemini_gemma": "mgm:OLD_GEMMA",
    "mini_gemini_mixtral": "mgm:OLD_MIXTRAL",
    "qwen2_5_vl": "qwen_vl:TWO_AND_A_HALF",
    "qwen2_vl": "qwen_vl:TWO",
    "qwen3_vl": "qwen_vl:THREE",
    "llava_next": "llava_next:MISTRAL",
    "llava_next-vicuna": "llava_next:VICUNA",
    "llava_next-yi-layers": "llava_next:YI_LAYERS",
    "llava_next-qwen": "llava_next:QWEN",
    "llava_next-granite": "llava_next:GRANITE",
    "llava_next_video": "llava_next:VIDEO",
    "llava_next_video-siglip-max": "llava_next:VIDEO_SIGLIP",
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
