"""The types of models that the generic adapter supports, one row each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplicedType:
    """How the generic adapter treats a type of model.

    Attributes:
        pixels: The kind of pixels that its processor makes, a key of `layouts.REGIONS`.
        reads_list: Whether the stock model reads the features of several images as a list, or as one tensor.
        batched: Whether several images go through the tower at once. Not where the tower would pad them, or mask all
            patches of one image from those of all others.
        processor: The module and class of its processor, where transformers names none, or hides it without
            torchvision, which images do not need.
        clips: How clips are read, a key of `clips.READERS`; empty if they are not.
        clips_need: A package that the type's own processor needs for clips alone. Where it is missing, `processor` is
            used, which reads images only.
        clips_since: The first release of transformers that runs clips of any length.
        has_tile_axis: Whether pixels are [1, S, 3, H, W]: an axis for images, then one for the tiles of each.
        joins_images: Whether tokens of an image attend to each other in both directions.
        writes_rows: Whether an image's text is a run for each row of tokens, as Pixtral's processor writes it, which
            needs torchvision.
        drops_audio: Whether the stock class can be built without its audio tower, which is then not loaded.
        since: The first release of transformers with which the type was tried, where the oldest one does not run it.
        places_text: Whether the text between the parts of an image has positions in row and column as well.
        shares_prefix: Whether the common prefix of prompts may be read once. Not where the stock model counts the
            padding of a batch as positions.
    """

    pixels: str
    reads_list: bool = True
    batched: bool = True
    processor: str = ""
    clips: str = ""
    clips_need: str = ""
    clips_since: str = "5.18"
    has_tile_axis: bool = False
    joins_images: bool = False
    writes_rows: bool = False
    drops_audio: bool = False
    places_text: bool = False
    shares_prefix: bool = True
    since: str = "5.18"


TYPES = {
    "aya_vision": SplicedType("tiles", reads_list=False),
    "cohere2_vision": SplicedType("tiles", reads_list=False),
    "cohere_compass": SplicedType("patch_grid", clips="video_processor", since="5.24"),
    "cosmos3_edge": SplicedType("patch_grid", clips="video_processor", since="5.24"),
    "cosmos3_omni": SplicedType("patch_grid", clips="video_processor", processor="qwen3_vl:Qwen3VLProcessor"),
    "deepseek_vl": SplicedType("square", reads_list=False),
    "ernie4_5_vl_moe": SplicedType("patch_grid", clips="video_processor"),
    "exaone4_5": SplicedType("patch_grid", clips="video_processor", shares_prefix=False),
    "gemma3": SplicedType("crops", reads_list=False, joins_images=True),
    "gemma4": SplicedType("positions", clips="video_processor", joins_images=True, drops_audio=True, since="5.24"),
    "gemma4_unified": SplicedType(
        "positions", clips="video_processor", joins_images=True, drops_audio=True, since="5.24"
    ),
    "glm46v": SplicedType("patch_grid", clips="video_processor"),
    "glm4v": SplicedType("patch_grid", clips="video_processor"),
    "glm4v_moe": SplicedType("patch_grid", clips="video_processor"),
    "glm_ocr": SplicedType("patch_grid", clips="video_processor", processor="glm46v:Glm46VProcessor"),
    "hyperclovax_vision_v2": SplicedType("patch_grid", clips="video_processor", shares_prefix=False),
    "idefics3": SplicedType("named_tiles", reads_list=False, has_tile_axis=True),
    "internvl": SplicedType("tiles", reads_list=False, clips="frames"),
    "janus": SplicedType("square", reads_list=False),
    "kimi_k25": SplicedType("patch_grid", clips="video_processor", clips_since="5.24"),
    "lfm2_vl": SplicedType("spatial_shapes"),
    "lighton_ocr": SplicedType("image_size", batched=False),
    "minicpmv4_6": SplicedType("slices", clips="video_processor", batched=False, since="5.24"),
    "minicpmv4_7": SplicedType(
        "slices", clips="video_processor", batched=False, places_text=True, shares_prefix=False, since="5.24"
    ),
    "minimax_m3_vl": SplicedType("patch_grid", clips="video_processor"),
    "mistral3": SplicedType("image_size", batched=False, processor="llava:LlavaProcessor", writes_rows=True),
    "muse_glimmer": SplicedType("patch_grid", clips="video_processor"),
    "muse_spark": SplicedType("patch_grid", clips="video_processor", since="5.24"),
    "ovis2": SplicedType("whole_and_tiles", reads_list=False),
    "paddleocr_vl": SplicedType("patch_grid", since="5.24"),
    "qianfan_ocr": SplicedType("tiles", reads_list=False),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), SplicedType("patch_grid")
    ),
    "smolvlm": SplicedType(
        "named_tiles",
        reads_list=False,
        has_tile_axis=True,
        clips="frames",
        clips_need="num2words",
        processor="idefics3:Idefics3Processor",
    ),
    "video_llama_3": SplicedType("patch_grid"),
    "vipllava": SplicedType("square", reads_list=False),
}
"""By model_type. Those of Qwen have an adapter of their own besides, which adds clips."""

UNKNOWN = SplicedType("any", batched=False, shares_prefix=False)
"""A type that is in no table, before it was tried."""
