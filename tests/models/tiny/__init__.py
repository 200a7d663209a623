"""Tiny checkpoints of the real classes: files and structure of real ones, but narrower and shallower.

`test_every_family_has_a_tiny_model` fails for a family that is missing here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from prunesid_cli.models.spliced.table import TYPES as SPLICED_TYPES
from tests.models.tiny.base import TinyModel

TINY = {
    **{model_type: f"spliced:{model_type}" for model_type in SPLICED_TYPES},
    "gemma3": "gemma3:PLAIN",
    "gemma3-crops": "gemma3:CROPS",
    "idefics3": "idefics3:PLAIN",
    "idefics3-long": "idefics3:LONG",
    "idefics3-smolvlm": "idefics3:SMOLVLM1",
    "idefics3-whole": "idefics3:WHOLE",
    "internvl": "internvl:PLAIN",
    "internvl-gpt_oss": "internvl:GPT_OSS",
    "internvl-inner": "internvl:INNER",
    "internvl-large": "internvl:LARGE",
    "llava": "llava:PLAIN",
    "llava-full": "llava:FULL",
    "llava-gemma2": "llava:GEMMA2",
    "llava-last": "llava:LAST",
    "llava-layers": "llava:LAYERS",
    "llava-lfm2": "llava:LFM2",
    "llava-mistral": "llava:MISTRAL",
    "llava-original": "original:PLAIN",
    "llava-pixtral": "llava:PIXTRAL",
    "llava-qwen2": "llava:QWEN2",
    "llava-siglip": "llava:SIGLIP",
    "llava-siglip-last": "llava:SIGLIP_LAST",
    "llava_next": "llava_next:MISTRAL",
    "llava_next-granite": "llava_next:GRANITE",
    "llava_next-original": "original:ANYRES",
    "llava_next-qwen": "llava_next:QWEN",
    "llava_next-vicuna": "llava_next:VICUNA",
    "llava_next-yi-layers": "llava_next:YI_LAYERS",
    "llava_next_video": "llava_next:VIDEO",
    "llava_next_video-siglip-max": "llava_next:VIDEO_SIGLIP",
    "llava_onevision": "llava_onevision:PLAIN",
    "llava_onevision-earlier": "llava_onevision:EARLIER",
    "llava_onevision-real": "llava_onevision:REAL",
    "mgm": "mgm:VICUNA",
    "mgm-hd": "mgm:HD",
    "mgm_gemma": "mgm:GEMMA",
    "mgm_mixtral": "mgm:MIXTRAL",
    "mini_gemini": "mgm:OLD_VICUNA",
    "mini_gemini_gemma": "mgm:OLD_GEMMA",
    "mini_gemini_mixtral": "mgm:OLD_MIXTRAL",
    "paligemma": "paligemma:PLAIN",
    "paligemma-large": "paligemma:LARGE",
    "paligemma-two": "paligemma:TWO",
    "qwen2_5_vl": "qwen_vl:TWO_AND_A_HALF",
    "qwen2_vl": "qwen_vl:TWO",
    "qwen3_5": "qwen_vl:THREE_AND_A_HALF",
    "qwen3_5_moe": "qwen_vl:THREE_AND_A_HALF_MOE",
    "qwen3_vl": "qwen_vl:THREE",
    "qwen3_vl_moe": "qwen_vl:THREE_MOE",
    "smolvlm": "idefics3:SMOLVLM2",
    "video_llava": "video_llava:PLAIN",
    "video_llava-full": "video_llava:FULL",
    "gemma4-experts": "spliced:gemma4__experts",
    "gemma4-vision": "spliced:gemma4__vision",
}
"""Variant -> module and name of its `TinyModel`; the part of the variant before the first hyphen is the model_type."""


def tiny_model(variant: str) -> TinyModel:
    """The tiny model of a variant."""
    module, name = TINY[variant].split(":")
    model: TinyModel = getattr(import_module(f"{__name__}.{module}"), name)
    return model


def write_checkpoint(variant: str, folder: Path) -> Path:
    """Write the checkpoint of a variant into a folder, and return the folder."""
    tiny_model(variant).write(folder)
    return folder
