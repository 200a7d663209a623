"""LLaVA-1.5 and 1.6 as their authors published them: other names of weights and settings, a tower of its own repo, a
tokenizer without `<image>`, whose id is beyond the vocabulary of the model."""

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
from tests.models.tiny.base import Tiny, save

SIDE, PATCH = 336, 14
SPECIAL = ("<unk>", "<s>", "</s>")
SQUARE = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Width and height. Turned, they are in an order in which another of two that are as good comes first."""
TURNED = [[height, width] for width, height in GRIDS]
THEIRS = {
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
ONE = {"image_aspect_ratio": "pad", "mm_projector_type": "mlp2x_gelu", "model_type": "llava"}
TILES = ONE | {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": GRIDS,
    "mm_patch_merge_type": "spatial_unpad",
}


def tokenizer() -> PreTrainedTokenizerFast:
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


def beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}-{what}")


def original(folder: Path, seed: int = 0, tower_inside: bool = True, said: dict[str, Any] = ONE) -> None:
    """The checkpoint; beside it its tower, and the same weights as transformers has them."""
    words = tokenizer()
    words.save_pretrained(folder)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    kind, config = (
        (LlavaNextForConditionalGeneration, partial(LlavaNextConfig, image_grid_pinpoints=TURNED))
        if "image_grid_pinpoints" in said
        else (LlavaForConditionalGeneration, LlavaConfig)
    )
    text = LlamaConfig(vocab_size=len(words) + 1, **TEXT)
    save(
        kind,
        config(vision_config=vision, text_config=text, image_token_index=len(words)),
        beside(folder, "whole"),
        seed,
    )
    weights = theirs(kind.from_pretrained(beside(folder, "whole")), len(words))
    tower = {name: tensor for name, tensor in weights.items() if "vision_tower" in name}
    if not tower_inside:
        weights = {name: tensor for name, tensor in weights.items() if name not in tower}
    save_torch_state_dict(weights, folder)
    settings = {
        **TEXT,
        **said,
        "vocab_size": len(words),
        "mm_vision_tower": str(beside(folder, "tower")),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "mm_use_im_start_end": False,
        "hidden_act": "silu",
        "rope_scaling": None,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    write_tower(beside(folder, "tower"), vision, tower)


def write_tower(folder: Path, vision: CLIPVisionConfig, tower: dict[str, Tensor]) -> None:
    """A whole CLIP, as the repo of a tower has it."""
    clip = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config={"num_hidden_layers": 1}))
    state = {name.removeprefix("model.vision_tower.vision_tower."): tensor for name, tensor in tower.items()}
    assert not clip.load_state_dict(state, strict=False).unexpected_keys
    clip.save_pretrained(folder)
    CLIPImageProcessorPil(**SQUARE).save_pretrained(folder)


def theirs(model: Any, vocabulary: int) -> dict[str, Tensor]:
    """Weights of transformers by their original names, without the row of `<image>`."""
    state = {}
    for name, tensor in model.state_dict().items():
        if "embed_tokens" in name or "lm_head" in name:
            tensor = tensor[:vocabulary].clone()
        for mine, its in THEIRS.items():
            name = re.sub(mine, its, name)
        state[name] = tensor
    return state


def whole(folder: Path) -> Any:
    """The same as transformers has it, which needs a row of `<image>` to read, and none to say."""
    said = json.loads((folder / "config.json").read_text())
    tiles = "image_grid_pinpoints" in said
    kind = LlavaNextForConditionalGeneration if tiles else LlavaForConditionalGeneration
    model = kind.from_pretrained(beside(folder, "whole"), attn_implementation="eager").eval()
    words = tokenizer()
    words.add_tokens(["<image>"], special_tokens=True)
    count = len(words) - 1
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:count].detach())
    images = (
        LlavaNextImageProcessorPil(**SQUARE, image_grid_pinpoints=TURNED)
        if tiles
        else (LlavaImageProcessorPil(**SQUARE, do_pad=True))
    )
    model.processor = (LlavaNextProcessor if tiles else LlavaProcessor)(
        images,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )

    def save_as_theirs(where: Path, max_shard_size: str) -> None:
        where.mkdir()
        save_torch_state_dict(theirs(model, count), where, max_shard_size=max_shard_size)

    model.save_pretrained = save_as_theirs
    return model


PLAIN = Tiny(original, stock=whole)
ANYRES = Tiny(partial(original, said=TILES), ((336, 336), (500, 200), (90, 400), (1200, 300), (20, 20)), stock=whole)
