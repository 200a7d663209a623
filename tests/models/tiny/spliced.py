"""Tiny models of the types that the generic adapter supports.

Configurations are the defaults of transformers, which mostly are those of a real checkpoint, with small widths and
depths. Patch sizes, merging, pooling, positions and the processors' settings stay as they are, unless said here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.models.tiny.base import Sizes, TinyModel, save
from tests.models.tiny.llava import load_stock_pixtral
from tests.models.tiny.qwen_vl import as_clip
from tests.models.tiny.tokenizers import build_byte_level_tokenizer

WIDTH = 64
SMALL = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "out_hidden_size", "projection_dim"), WIDTH),
    **dict.fromkeys(("projector_hidden_size", "projection_hidden_size", "proj_hidden_size"), WIDTH),
    **dict.fromkeys(("text_hidden_size", "vision_hidden_size", "mm_hidden_size", "merged_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "mlp_dim", "alignment_intermediate_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "head_dim", "global_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim",), 16),
    "hidden_size_per_layer_input": 8,
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "linear_num_key_heads"), 2),
    "linear_num_value_heads": 4,
    "max_position_embeddings": 16384,
    "num_kv_shared_layers": 0,
    "num_nextn_predict_layers": 0,
}
"""Settings that are made small wherever a configuration has them."""
CHATML = (
    "{{% for turn in messages %}}{{{{ '<|im_start|>' + turn['role'] + '\\n' }}}}{{% for part in turn['content'] %}}"
    "{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}{{% elif part['type'] == 'video' %}}{{{{ '{clip}' }}}}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
    "{{{{ '<|im_end|>\\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"
)
"""A chat template; what it writes for an image and for a clip is filled in."""


@dataclass(frozen=True)
class Spec:
    """What a tiny model of a type needs besides the defaults.

    Attributes:
        image: What the chat template writes for an image.
        clip: What it writes for a clip, where the type reads clips.
        clips: Settings of the video processor.
        clip_processor: Its class, where it is not named like the type.
        placeholder: The placeholder of a visual token, where it has no name and is not what the template writes.
        tokens: Names of tokens of the tokenizer -> tokens.
        more_tokens: Tokens without a name.
        config: Settings of the configuration; `text.` and `vision.` before a name mean its parts.
        images: Settings of the image processor.
        processor: Settings of the processor.
        processor_class: Its class, where it is not named like the type.
        image_type: The type whose image processor it has, where transformers names none for it.
        adjust: Changes the configuration further; given the tokenizer as well.
        load_stock, prune_inputs, sizes: As in `TinyModel`.
        seed: Seed of the weights.
    """

    image: str = "<|vision_start|><|image_pad|><|vision_end|>"
    clip: str = ""
    clips: Mapping[str, Any] = field(default_factory=dict)
    clip_processor: str = ""
    placeholder: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    more_tokens: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    processor_class: str = ""
    image_type: str = ""
    adjust: Callable[[Any, Any], None] = lambda config, tokenizer: None
    load_stock: Callable[[Path], Any] | None = None
    prune_inputs: Callable[[dict[str, Any], Tensor], dict[str, Any]] | None = None
    sizes: Sizes = ((336, 336), (500, 200), (90, 400))
    seed: int = 0


def mrope(*section: int) -> dict[str, Any]:
    return {"text.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}}


QWEN_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
SMALL_CLIPS = {"size": {"shortest_edge": 56 * 56, "longest_edge": 60_000}}
"""At most 60,000 pixels in all frames together."""
GLM = Spec(
    image="<|begin_of_image|><|image|><|end_of_image|>",
    clip="<|begin_of_video|><|video|><|end_of_video|>",
    clips=SMALL_CLIPS,
    tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
    more_tokens=("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    config=mrope(2, 3, 3),
)
QWEN_LIKE = Spec(
    clip="<|vision_start|><|video_pad|><|vision_end|>",
    clips=SMALL_CLIPS,
    tokens=QWEN_TOKENS,
    more_tokens=("<|vision_start|>", "<|vision_end|>"),
)


GEMMA4_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 64,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA4_EXPERTS = {
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}
GEMMA4_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


def set_gemma4(config: Any, tokenizer: Any, **text: Any) -> None:
    """Its defaults name settings of single layers, and have no tower."""
    vocabulary = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    config.text_config = transformers.Gemma4TextConfig(**{**GEMMA4_TEXT, **vocabulary, **text})
    config.vision_config = transformers.Gemma4VisionConfig(**GEMMA4_VISION)


def set_gemma4_unified(config: Any, tokenizer: Any) -> None:
    config.text_config = transformers.Gemma4UnifiedTextConfig(**GEMMA4_TEXT, vocab_size=len(tokenizer))
    config.vision_config = transformers.Gemma4UnifiedVisionConfig(mm_embed_dim=WIDTH, output_proj_dims=WIDTH)


def prune_gemma4_inputs(inputs: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """Remove pruned rows, also of the embeddings that each layer has of its own."""
    pruned = {"inputs_embeds": inputs["inputs_embeds"][:, kept], "attention_mask": None, "use_cache": False}
    if inputs.get("per_layer_inputs") is not None:
        pruned["per_layer_inputs"] = inputs["per_layer_inputs"][:, kept]
    return pruned


def prune_both_masks(inputs: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """The masks of kept rows in their order: causal, and the tokens of an image see each other in sliding layers.

    The window is longer than the prompts.
    """
    is_seen = inputs["attention_mask"]["sliding_attention"][0, 0] == 0
    same_image = (is_seen & is_seen.mT)[kept][:, kept]
    causal = torch.ones_like(same_image).tril()
    masks = {"full_attention": causal[None, None], "sliding_attention": (causal | same_image)[None, None]}
    lowest = torch.finfo(inputs["inputs_embeds"].dtype).min
    masks = {name: torch.zeros(mask.shape).masked_fill(~mask, lowest) for name, mask in masks.items()}
    return {"inputs_embeds": inputs["inputs_embeds"][:, kept], "attention_mask": masks, "use_cache": False}


def set_ovis2(config: Any, tokenizer: Any) -> None:
    marks = ("<IMG_START>", "<IMG_END>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>")
    config.visual_indicator_token_ids = tokenizer.convert_tokens_to_ids(list(marks))


def two_kinds_of_windows(config: Any, tokenizer: Any) -> None:
    config.vision_config.layer_types = ["window_attention", "full_attention"]


TILES = {"size": {"height": 112, "width": 112}, "crop_to_patches": True}
MINICPM_TOKENS = {
    "image_token": "<unk_image>",
    "video_token": "<unk_video>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


def set_minicpmv4_7(config: Any, tokenizer: Any) -> None:
    """The tokens on which positions around an image are anchored."""
    for name in ("image_start", "image_end", "slice_start", "slice_end"):
        setattr(config, f"{name}_id", tokenizer.convert_tokens_to_ids(MINICPM_TOKENS[f"{name}_token"]))
    (config.newline_id,) = tokenizer("\n", add_special_tokens=False)["input_ids"]


ENDS = ("image_start", "image_end", "video_start", "video_end")


def set_muse_spark(config: Any, tokenizer: Any) -> None:
    two_kinds_of_windows(config, tokenizer)
    config.audio_config = transformers.MuseSparkAudioConfig(
        hidden_sizes=(16,) * 4, depths=(1,) * 4, out_hidden_size=WIDTH
    )


GEMMA4 = Spec(
    image="<image_soft_token>",
    clip="<|video|>",
    tokens={"image_token": "<image_soft_token>", "video_token": "<|video|>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    | {"audio_token": "<audio_soft_token>", "boa_token": "<boa>", "eoa_token": "<eoa>"},
    images={"max_soft_tokens": 70},
    adjust=set_gemma4,
    prune_inputs=prune_gemma4_inputs,
)
MUSE = Spec(
    image="<|patch|>",
    clip="<|video|>",
    more_tokens=("<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_frame_separator|>")
    + ("<|vid_start|>", "<|vid_end|>"),
    config={"out_hidden_size": 256},
    adjust=two_kinds_of_windows,
)
SPECS = {
    "aya_vision": Spec(
        image="<image>",
        placeholder="<|IMG_PATCH|>",
        more_tokens=(
            "<image>",
            "<|IMG_PATCH|>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_LINE_BREAK|>",
            "TILE_GLOBAL",
        )
        + tuple(f"TILE_{number}" for number in range(1, 13)),
        config={"vision.image_size": 112, "downsample_factor": 2},
        images=TILES,
        processor={"patch_size": 28, "img_size": 112},
    ),
    "cohere2_vision": Spec(
        image="<|IMG_PATCH|>",
        tokens={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
        config={"downsample_factor": 2, "vision.image_size": 128, "vision.patch_size": 16},
        images={"size": {"height": 128, "width": 128}, "crop_to_patches": True, "patch_size": 4},
    ),
    "cohere_compass": Spec(
        image="<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
        clip="<|VISION_START|><|VIDEO_PAD|><|VISION_END|>",
        clips=SMALL_CLIPS,
        placeholder="<|IMAGE_PAD|>",
        tokens={"video_token": "<|VIDEO_PAD|>"},
        more_tokens=("<|VISION_START|>", "<|IMAGE_PAD|>", "<|VISION_END|>"),
        images={"patch_size": 16},
        config={
            "text.rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
            }
        },
    ),
    "cosmos3_edge": replace(QWEN_LIKE, config=mrope(3, 3, 2)),
    "cosmos3_omni": replace(
        QWEN_LIKE,
        clip_processor="Qwen3VLVideoProcessor",
        processor_class="Qwen3VLProcessor",
        config=mrope(3, 3, 2),
        images={"patch_size": 16},
    ),
    "deepseek_vl": Spec(
        image="<image_placeholder>",
        tokens={"image_token": "<image_placeholder>"},
        config={"vision.image_size": 96},
        images={"size": {"height": 96, "width": 96}},
        processor={"num_image_tokens": 36},
    ),
    "ernie4_5_vl_moe": Spec(
        image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        clip="<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>",
        clips={"draw_on_frames": False, **SMALL_CLIPS},  # the font is not part of transformers
        tokens={"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|VIDEO_PLACEHOLDER|>"}
        | {f"{end}_token": f"<|{end.upper()}|>" for end in ENDS},
        config=mrope(3, 3, 2),
    ),
    "exaone4_5": replace(QWEN_LIKE, clip_processor="Qwen2VLVideoProcessor"),
    "gemma4": GEMMA4,
    "idefics2": Spec(
        image="<image>",
        tokens={"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"},
        more_tokens=("<end_of_utterance>",),
        config={"vision.image_size": 112, "vision.patch_size": 14, "perceiver.num_key_value_heads": 4},
        images={"size": {"shortest_edge": 56, "longest_edge": 112}, "do_image_splitting": False},
    ),
    "gemma4__vision": replace(
        GEMMA4,
        adjust=partial(
            set_gemma4, hidden_size_per_layer_input=0, use_bidirectional_attention="vision", sliding_window=512
        ),
        prune_inputs=prune_both_masks,
    ),
    "gemma4__experts": replace(GEMMA4, adjust=partial(set_gemma4, **GEMMA4_EXPERTS)),
    "gemma4_unified": replace(GEMMA4, adjust=set_gemma4_unified),
    "glm46v": GLM,
    "glm4v": GLM,
    "glm4v_moe": replace(
        GLM,
        config=mrope(1, 1, 2),
        processor_class="Glm4vProcessor",
        image_type="glm4v",
        clip_processor="Glm4vVideoProcessor",
    ),
    "glm_ocr": replace(
        GLM, processor_class="Glm46VProcessor", image_type="glm46v", clip_processor="Glm46VVideoProcessor"
    ),
    "hyperclovax_vision_v2": replace(QWEN_LIKE, clip_processor="Qwen2VLVideoProcessor"),
    "janus": Spec(
        image="<image_placeholder>",
        tokens={"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        config={"vision.image_size": 96},
        images={"size": {"height": 96, "width": 96}},
        processor={"num_image_tokens": 36},
    ),
    "kimi_k25": Spec(
        image="<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
        clip="<|kimi_k25_video_placeholder|>",
        clips={"size": {"max_height": 112, "max_width": 112}},
        tokens={"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"},
        more_tokens=("<|media_begin|>", "<|media_content|>", "<|media_end|>"),
        config={"text.num_key_value_heads": 4},
    ),
    "lfm2_vl": Spec(
        image="<image>",
        tokens={"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
        | {"image_thumbnail_token": "<|img_thumbnail|>"},
        more_tokens=tuple(f"<|img_row_{row}_col_{column}|>" for row in range(1, 6) for column in range(1, 6)),
    ),
    "lighton_ocr": Spec(
        image="<|image_pad|>",
        tokens={
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
        images={"patch_size": 14, "size": {"longest_edge": 560}},
        config={"vision.image_size": 560},
    ),
    "minicpmv4_6": Spec(
        image="<unk_image>",
        clip="<unk_video>",
        clips={"scale_resolution": 224},
        tokens=MINICPM_TOKENS,
        config={"vision.patch_size": 14, "insert_layer_id": 0, "vision.insert_layer_id": 0},
        images={"scale_resolution": 224},
    ),
    "minicpmv4_7": Spec(
        image="<unk_image>",
        clip="<unk_video>",
        clips={"scale_resolution": 224},
        clip_processor="MiniCPMV4_6VideoProcessor",
        image_type="minicpmv4_6",
        tokens=MINICPM_TOKENS,
        config={"vision.patch_size": 14, "insert_layer_id": 0, "vision.insert_layer_id": 0, **mrope(3, 3, 2)},
        images={"scale_resolution": 224},
        adjust=set_minicpmv4_7,
    ),
    "minimax_m3_vl": Spec(
        image="]<]image[>[",
        clip="]<]video[>[",
        clip_processor="MiniMaxM3VLVideoProcessor",
        config={"merged_hidden_size": 256},
        tokens={"video_token": "]<]video[>["},
        more_tokens=("]<]image[>[", "]<]start of image[>[", "]<]end of image[>["),
    ),
    "mistral3": Spec(
        image="[IMG]",
        more_tokens=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        images={"patch_size": 14, "size": {"longest_edge": 560}},
        processor={
            "patch_size": 14,
            "spatial_merge_size": 2,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
        processor_class="PixtralProcessor",
        config={"vision.image_size": 560},
        load_stock=load_stock_pixtral,
    ),
    "muse_glimmer": MUSE,
    "muse_spark": replace(
        MUSE, image_type="muse_glimmer", clip_processor="MuseGlimmerVideoProcessor", adjust=set_muse_spark
    ),
    "ovis2": Spec(
        image="<image>",
        placeholder="<IMG_ATOM>",
        more_tokens=("<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        config={"vision.image_size": 112},
        images=TILES,
        processor={"image_seq_length": 64},
        adjust=set_ovis2,
    ),
    "paddleocr_vl": Spec(
        image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        tokens={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        more_tokens=("<|IMAGE_START|>", "<|IMAGE_END|>"),
        config=mrope(2, 3, 3),
    ),
    "qianfan_ocr": Spec(
        image="<image>",
        placeholder="<IMG_CONTEXT>",
        tokens={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
        more_tokens=("<image>",),
        config={"vision.image_size": [112, 112]},
        images=TILES,
        processor={"image_seq_length": 16},
    ),
    "video_llama_3": replace(QWEN_LIKE, clip="", config={"vision.patch_size": 14}),
    "vipllava": Spec(
        image="<image>\\n",
        placeholder="<image>",
        more_tokens=("<image>",),
        config={"vision.image_size": 112, "vision.num_hidden_layers": 4, "vision_feature_layers": [-2, -3]},
        images={"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}},
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        processor_class="LlavaProcessor",
    ),
}


def shrink(config: PretrainedConfig) -> None:
    """Make widths and depths small, in a configuration and its parts."""
    for name, value in list(vars(config).items()):
        if name == "audio_config":
            continue
        if isinstance(value, PretrainedConfig):
            shrink(value)
        elif name in SMALL and isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            setattr(config, name, SMALL[name])
        elif name in ("layer_types", "mlp_layer_types") and isinstance(value, list):
            setattr(config, name, [value[0], next((other for other in value if other != value[0]), value[0])])
        elif name == "deepstack_visual_indexes" and value:
            setattr(config, name, [0])
        elif name == "fullatt_block_indexes" and value:
            setattr(config, name, [1])


def write_spliced(folder: Path, model_type: str, spec: Spec) -> None:
    special = [
        "<pad>",
        "<s>",
        "<|im_end|>",
        "<|im_start|>",
        *dict.fromkeys((*spec.tokens.values(), *spec.more_tokens, "<|video|>")),
    ]
    template = CHATML.format(image=spec.image, clip=spec.clip)
    tokenizer = build_byte_level_tokenizer(
        special,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens=dict(spec.tokens),
        chat_template=template,
    )
    names = IMAGE_PROCESSOR_MAPPING_NAMES[spec.image_type or model_type]
    images = get_image_processor_class_from_name(names.get("pil") or names["torchvision"])(**spec.images)
    processor_class = spec.processor_class or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type].replace(
        "ForConditionalGeneration", "Processor"
    )
    tokenizer.save_pretrained(folder)
    settings = {**images.to_dict(), "processor_class": processor_class}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, default=str))
    (folder / "processor_config.json").write_text(json.dumps({**spec.processor, "processor_class": processor_class}))
    if spec.clip:
        model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]
        kind = spec.clip_processor or model_class.replace("ForConditionalGeneration", "VideoProcessor")
        settings = {**spec.clips, "video_processor_type": kind}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    config = AutoConfig.for_model(model_type)
    shrink(config)
    for name, value in spec.config.items():
        part, _, setting = name.rpartition(".")
        setattr(getattr(config, f"{part}_config") if part else config, setting, copy.deepcopy(value))
    text = config.get_text_config()
    text.vocab_size = len(tokenizer)
    if hasattr(text, "vocab_size_per_layer_input"):
        text.vocab_size_per_layer_input = len(tokenizer)
    for part in (config, text):
        for name, value in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
            if hasattr(part, name):
                setattr(part, name, value)
    set_token_ids(config, tokenizer, spec)
    spec.adjust(config, tokenizer)
    save(getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]), config, folder, spec.seed)


def set_token_ids(config: Any, tokenizer: Any, spec: Spec) -> None:
    """Set the ids of placeholders and of the tokens around them."""
    named = {f"{name}_id": token for name, token in spec.tokens.items()}
    named.setdefault("image_token_id", spec.placeholder or spec.image)
    named["image_token_index"] = named["image_token_id"]
    named.setdefault("video_token_id", "<|video|>")
    named["vision_start_token_id"], named["vision_end_token_id"] = "<|vision_start|>", "<|vision_end|>"
    for name, token in named.items():
        if hasattr(config, name) and token in tokenizer.get_vocab():
            setattr(config, name, tokenizer.convert_tokens_to_ids(token))


def __getattr__(name: str) -> TinyModel:
    """The tiny model of a type, or of a variant of it, after a double underline."""
    spec = SPECS[name]
    write = partial(write_spliced, model_type=name.partition("__")[0], spec=spec)
    has_clips = spec.clip and find_spec("torchvision") is not None
    return TinyModel(
        write,
        spec.sizes,
        as_clip if has_clips else None,
        load_stock=spec.load_stock,
        prune_inputs=spec.prune_inputs,
    )
