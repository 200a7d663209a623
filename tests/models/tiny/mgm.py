"""Mini-Gemini under the names of the original checkpoints: CLIP 336/14, ConvNeXt at 768, Llama, Gemma or Mixtral.

All but one have fewer patches, but as many positions of the large image per patch (8 x 8) as the real ones.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from prunesid_cli.models.mini_gemini.model import LANGUAGE_MODELS
from tests.models.tiny.base import TinyModel, save
from tests.models.tiny.mgm_reference import load_reference

CLIP_WIDTH, WIDTH, PATCH, LAYERS = 32, 48, 14, 4
WIDTHS, DEPTHS = (4, 6, 8, 10), (1, 1, 2, 1)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CONVNEXT = "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
TEMPLATES = {
    "": None,  # Vicuna's tokenizer has none
    "_gemma": "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{{ message['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "_mixtral": "{{ bos_token }}{% for message in messages %} [INST] {{ message['content'] }} [/INST]{% endfor %}",
}


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Like Llama's: a mark before each word and, except for Gemma, before a text, and BOS. `<image>` is no token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    scheme = "never" if kind == "_gemma" else "first"
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    alphabet = [chr(code) for code in (10, *range(33, 127))]
    raw.train_from_iterator(
        ["USER: \nwhat is shown? ASSISTANT: a red square and a blue circle"] * 4,
        trainers.BpeTrainer(
            vocab_size=200, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=TEMPLATES[kind], **names)


def language_config(model_type: str, vocabulary: int) -> Any:
    base, _ = LANGUAGE_MODELS[model_type]
    more = {"num_local_experts": 2} if model_type.endswith("mixtral") else {}
    more |= {"head_dim": 12, "hidden_activation": "gelu_pytorch_tanh"} if model_type.endswith("gemma") else {}
    return base(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def convnext_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of a ConvNeXt without a head, by timm's names."""
    shapes: dict[str, tuple[int, ...]] = {"stem.0.weight": (WIDTHS[0], 3, 4, 4), "stem.0.bias": (WIDTHS[0],)}
    shapes |= {"stem.1.weight": (WIDTHS[0],), "stem.1.bias": (WIDTHS[0],)}
    for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        if stage:
            before, name = WIDTHS[stage - 1], f"stages.{stage}.downsample"
            shapes |= {f"{name}.0.weight": (before,), f"{name}.0.bias": (before,)}
            shapes |= {f"{name}.1.weight": (width, before, 2, 2), f"{name}.1.bias": (width,)}
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            shapes |= {f"{name}.gamma": (width,), f"{name}.conv_dw.weight": (width, 1, 7, 7)}
            shapes |= {f"{name}.mlp.fc1.weight": (4 * width, width), f"{name}.mlp.fc1.bias": (4 * width,)}
            shapes |= {f"{name}.mlp.fc2.weight": (width, 4 * width)}
            shapes |= {
                f"{name}.{parameter}": (width,)
                for parameter in ("conv_dw.bias", "norm.weight", "norm.bias", "mlp.fc2.bias")
            }
    return shapes


def joining_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of what joins the towers and of the projector, by their original names."""
    shapes = {}
    for name, width in (("query", CLIP_WIDTH), ("aux", sum(WIDTHS)), ("val", sum(WIDTHS))):
        start = f"vlm_uni_{name}_projector"
        shapes |= {f"{start}.0.weight": (width,), f"{start}.0.bias": (width,)}
        shapes |= {f"{start}.1.weight": (CLIP_WIDTH, width), f"{start}.1.bias": (CLIP_WIDTH,)}
    for layer, width in ((0, CLIP_WIDTH), (2, WIDTH)):
        shapes |= {f"mm_projector.{layer}.weight": (WIDTH, width), f"mm_projector.{layer}.bias": (WIDTH,)}
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Random tensors, large enough that the large image matters; norms are around 1."""
    scale = {name: 0.15 if len(shape) == 2 else 0.4 for name, shape in shapes.items()}
    tensors = {name: scale[name] * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    norms = [name for name, shape in shapes.items() if len(shape) == 1 and not name.endswith("bias")]
    return tensors | {name: 1 + tensors[name] for name in norms}


def clip_tower(folder: Path, side: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Write the settings of CLIP like its repository. Returns its weights."""
    vision = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        projection_dim=32,
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in CLIPVisionModel(vision).state_dict().items()}
    CLIPConfig(vision_config=vision.to_dict()).save_pretrained(folder)
    square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessorPil(**square).save_pretrained(folder)
    return {name.removeprefix("vision_model."): tensor for name, tensor in random_tensors(shapes, generator).items()}


def write_mgm(folder: Path, model_type: str, side: int = 336, large: int = 768, **settings: Any) -> None:
    words = tokenizer(model_type.removeprefix("mgm").removeprefix("mini_gemini"))
    config = language_config(model_type, len(words))
    save(LANGUAGE_MODELS[model_type][1], config, folder)
    words.save_pretrained(folder)
    clip = folder.parent / f"{folder.name}-towers" / "clip-vit-large-patch14-336"
    generator = torch.Generator().manual_seed(1)
    parts = {
        "model.vision_tower.vision_tower.vision_model.": clip_tower(clip, side, generator),
        "model.vision_tower_aux.vision_": random_tensors(convnext_shapes(), generator),
        "model.": random_tensors(joining_shapes(), generator),
    }
    weights = load_file(folder / "model.safetensors")
    weights |= {start + name: tensor for start, part in parts.items() for name, tensor in part.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config_json = json.loads((folder / "config.json").read_text()) | {
        "model_type": model_type,
        "mm_vision_tower": str(clip),
        "mm_vision_tower_aux": f"model_zoo/OpenAI/{CONVNEXT}",
        "mm_hidden_size": CLIP_WIDTH,
        "mm_hidden_size_aux": sum(WIDTHS),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "image_size_aux": large,
        "image_grid": 1,
        "image_global": False,
        "optimize_vision_tower": False,
        "optimize_vision_tower_aux": False,
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(config_json))


SIZES = ((336, 336), (501, 200), (93, 400))
"""The two halves of a margin differ by a pixel."""


def _tiny(model_type: str, **generation: Any) -> TinyModel:
    return TinyModel(partial(write_mgm, model_type=model_type, **generation), SIZES, load_stock=load_reference)


SMALL: dict[str, Any] = {"side": 112, "large": 256}
VICUNA = _tiny("mgm")
GEMMA, MIXTRAL = (_tiny("mgm" + end, **SMALL) for end in ("_gemma", "_mixtral"))
HD = _tiny("mgm", side=112, large=512, image_grid=2, image_global=True)
OLD_VICUNA = _tiny("mini_gemini", image_aspect_ratio="square", **SMALL)
OLD_GEMMA, OLD_MIXTRAL = (_tiny("mini_gemini" + end, **SMALL) for end in ("_gemma", "_mixtral"))
