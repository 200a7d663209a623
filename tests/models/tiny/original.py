"""LLaVA-1.5 and 1.6 in the format of their authors.

Weights and settings have other names than in transformers, the tower has a repo of its own, and the tokenizer has no
`<image>`, so its id lies beyond the model's vocabulary.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from prunesid_cli.models.loading.original_processor import VICUNA
from tests.models.tiny.base import TinyModel, save

SIDE, PATCH = 336, 14
SPECIAL = ("<unk>", "<s>", "</s>")
SQUARE = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Width and height. With height first, their order makes the processor choose another of two equally good grids."""
TRANSPOSED_GRIDS = [[height, width] for width, height in GRIDS]
ORIGINAL_NAMES = {
    r"^model\.vision_tower\.": "model.vision_tower.vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^model\.multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^model\.language_model\.": "model.",
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SETTINGS = {"image_aspect_ratio": "pad", "mm_projector_type": "mlp2x_gelu", "model_type": "llava"}
TILE_SETTINGS = SETTINGS | {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": GRIDS,
    "mm_patch_merge_type": "spatial_unpad",
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["USER: what is shown? ASSISTANT: a red square and a blue circle"] * 4,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<unk>", **names)


def sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}-{suffix}")


def write_original(folder: Path, seed: int = 0, has_tower: bool = True, settings: dict[str, Any] = SETTINGS) -> None:
    """Write the checkpoint; next to it the repo of its tower, and the same model in the format of transformers."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    model_class, config_class = (
        (LlavaNextForConditionalGeneration, partial(LlavaNextConfig, image_grid_pinpoints=TRANSPOSED_GRIDS))
        if "image_grid_pinpoints" in settings
        else (LlavaForConditionalGeneration, LlavaConfig)
    )
    text = LlamaConfig(vocab_size=len(tokenizer) + 1, **TEXT)
    save(
        model_class,
        config_class(vision_config=vision, text_config=text, image_token_index=len(tokenizer)),
        sibling(folder, "stock"),
        seed,
    )
    weights = to_original_names(model_class.from_pretrained(sibling(folder, "stock")), len(tokenizer))
    tower = {name: tensor for name, tensor in weights.items() if "vision_tower" in name}
    if not has_tower:
        weights = {name: tensor for name, tensor in weights.items() if name not in tower}
    save_torch_state_dict(weights, folder)
    config_file = {
        **TEXT,
        **settings,
        "vocab_size": len(tokenizer),
        "mm_vision_tower": str(sibling(folder, "tower")),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "mm_use_im_start_end": False,
        "hidden_act": "silu",
        "rope_scaling": None,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config_file))
    write_tower(sibling(folder, "tower"), vision, tower)


def write_tower(folder: Path, vision: CLIPVisionConfig, tower: dict[str, Tensor]) -> None:
    """Write the repo of a tower, which holds all of CLIP."""
    clip = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config={"num_hidden_layers": 1}))
    state = {name.removeprefix("model.vision_tower.vision_tower."): tensor for name, tensor in tower.items()}
    assert not clip.load_state_dict(state, strict=False).unexpected_keys
    clip.save_pretrained(folder)
    CLIPImageProcessorPil(**SQUARE).save_pretrained(folder)


def to_original_names(model: Any, vocab_size: int) -> dict[str, Tensor]:
    """The weights of a model of transformers under their original names, without the row of `<image>`."""
    state = {}
    for name, tensor in model.state_dict().items():
        if "embed_tokens" in name or "lm_head" in name:
            tensor = tensor[:vocab_size].clone()
        for pattern, original in ORIGINAL_NAMES.items():
            name = re.sub(pattern, original, name)
        state[name] = tensor
    return state


def load_stock(folder: Path) -> Any:
    """Load the same model in the format of transformers, with an input row for `<image>` and no output row."""
    has_tiles = "image_grid_pinpoints" in json.loads((folder / "config.json").read_text())
    model_class = LlavaNextForConditionalGeneration if has_tiles else LlavaForConditionalGeneration
    model = model_class.from_pretrained(sibling(folder, "stock"), attn_implementation="eager").eval()
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    count = len(tokenizer) - 1
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:count].detach())
    images = (
        LlavaNextImageProcessorPil(**SQUARE, image_grid_pinpoints=TRANSPOSED_GRIDS)
        if has_tiles
        else LlavaImageProcessorPil(**SQUARE, do_pad=True)
    )
    model.processor = (LlavaNextProcessor if has_tiles else LlavaProcessor)(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )

    def save_original(target: Path, max_shard_size: str) -> None:
        target.mkdir()
        save_torch_state_dict(to_original_names(model, count), target, max_shard_size=max_shard_size)

    model.save_pretrained = save_original
    return model


PLAIN = TinyModel(write_original, load_stock=load_stock)
ANYRES = TinyModel(
    partial(write_original, settings=TILE_SETTINGS),
    ((336, 336), (500, 200), (90, 400), (1200, 300), (20, 20)),
    load_stock=load_stock,
)
