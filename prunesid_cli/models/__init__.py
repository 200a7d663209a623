"""The table of supported families of models. A new family is a new file and a row in `FAMILIES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models.spliced.table import TYPES as SPLICED_TYPES

if TYPE_CHECKING:
    from prunesid_cli.models.base import Family

SPLICED = "spliced.halves:Spliced"
FAMILIES = {
    **dict.fromkeys(SPLICED_TYPES, SPLICED),
    "llava": "llava:Llava",
    "llava_next": "llava_next:LlavaNext",
    "llava_next_video": "llava_next_video:LlavaNextVideo",
    "llava_onevision": "llava_onevision:LlavaOnevision",
    "mgm": "mini_gemini.halves:MGM",
    "mgm_gemma": "mini_gemini.halves:MGM",
    "mgm_mixtral": "mini_gemini.halves:MGM",
    "mini_gemini": "mini_gemini.halves:MGM",
    "mini_gemini_gemma": "mini_gemini.halves:MGM",
    "mini_gemini_mixtral": "mini_gemini.halves:MGM",
    "paligemma": "paligemma:PaliGemma",
    "qwen2_5_vl": "qwen_vl.halves:QwenVL",
    "qwen2_vl": "qwen_vl.halves:QwenVL",
    "qwen3_5": "qwen_vl.halves:QwenVL",
    "qwen3_5_moe": "qwen_vl.halves:QwenVL",
    "qwen3_vl": "qwen_vl.halves:QwenVL",
    "qwen3_vl_moe": "qwen_vl.halves:QwenVL",
    "video_llava": "video_llava:VideoLlava",
}
"""`model_type` in config.json -> module and class of its adapter."""
OTHER_CUTS = {
    "reads images by cross-attention, so images have no tokens in its prompt": ("mllama", "idefics", "blip"),
    "reads images through a fixed number of queries, so its visual tokens show no places": (
        "blip-2", "instructblip", "instructblipvideo", "kosmos-2", "kosmos-2.5",
    ),
    "gives images to the encoder of an encoder-decoder": (
        "florence2", "pix2struct", "udop", "t5gemma2", "vision-encoder-decoder", "pp_formulanet",
    ),
    "turns images into words of a codebook": ("emu3", "chameleon", "apertus1p5", "glm_image"),
    "fails in transformers 5.24 with any prompt": ("llama4",),
    "has no vision tower, only a projection of pixels": ("fuyu",),
}  # fmt: skip
"""Why a type of model cannot be cut in two halves -> the types."""


def load_family(model_type: str) -> Family:
    """Import and create the adapter for a model type. Other families are not imported.

    Args:
        model_type: A key of `FAMILIES`, or another type, which the generic adapter may be able to run.

    Raises:
        UnsupportedModel: It cannot be cut in two halves.
    """
    for reason, types in OTHER_CUTS.items():
        if model_type in types:
            hint = "see the types that are supported: prunesid models"
            raise UnsupportedModel(f"a model of type {model_type!r} {reason}", hint)
    module, class_name = FAMILIES.get(model_type, SPLICED).split(":")
    family: Family = getattr(import_module(f"{__name__}.{module}"), class_name)()
    return family
