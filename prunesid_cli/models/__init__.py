"""The table of supported families of models. A new family is a new file and a row in `FAMILIES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from prunesid_cli.errors import UnsupportedModel

if TYPE_CHECKING:
    from prunesid_cli.models.base import Family

FAMILIES = {
    "gemma3": "gemma3:Gemma3",
    "idefics3": "idefics3:Idefics3",
    "internvl": "internvl:InternVL",
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
    "qwen3_vl": "qwen_vl.halves:QwenVL",
    "smolvlm": "idefics3:SmolVLM",
    "video_llava": "video_llava:VideoLlava",
}
"""`model_type` in config.json -> module and class of its adapter."""


def load_family(model_type: str) -> Family:
    """Import and create the adapter for a model type. Other families are not imported.

    Args:
        model_type: A key of `FAMILIES`.

    Raises:
        UnsupportedModel: There is no adapter for it.
    """
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            f"no adapter for models of type {model_type!r}", hint=f"supported types: {', '.join(sorted(FAMILIES))}"
        )
    module, class_name = FAMILIES[model_type].split(":")
    family: Family = getattr(import_module(f"{__name__}.{module}"), class_name)()
    return family
