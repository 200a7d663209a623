"""LLaVA-1.5: CLIP 336/14, 576 tokens and CLS, an MLP, Llama; and checkpoints of the same type with other towers and
language models."""

from __future__ import annotations

import json
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    Gemma2Config,
    Lfm2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from prunesid_cli.demo.build import CHAT_TEMPLATE, build_processor, build_tokenizer
from tests.models.tiny.base import TinyModel, save

SIDE, PATCH = 336, 14
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PIXTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for part in message['content'] %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "[/INST]{% endif %}{% endfor %}"
)


def words() -> PreTrainedTokenizerFast:
    return build_tokenizer(["USER: \nwhat is shown? ASSISTANT: a red square and a blue circle"] * 4)


def llava(
    folder: Path,
    strategy: str = "default",
    layer: int | list[int] = -2,
    text: type = LlamaConfig,
    vision: Any = None,
    processor: Any = None,
    seed: int = 0,
    **more: Any,
) -> None:
    processor = processor or build_processor(words())
    processor.vision_feature_select_strategy = strategy
    processor.save_pretrained(folder)
    vision = vision or CLIPVisionConfig(
        **SMALL, num_hidden_layers=4, image_size=SIDE, patch_size=PATCH, projection_dim=32
    )
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text(vocab_size=len(processor.tokenizer), **TEXT, **more),
        image_token_index=image,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    save(LlavaForConditionalGeneration, config, folder, seed)


def llava_siglip(folder: Path, layer: int = -2, head: bool = True) -> None:
    """SigLIP so400m/384: 27 x 27 tokens, no CLS; its pooling head comes with it and is not read."""
    vision = SiglipVisionConfig(**SMALL, num_hidden_layers=4, image_size=384, patch_size=PATCH, vision_use_head=head)
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        words(),
        patch_size=PATCH,
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )
    llava(folder, "full", layer, vision=vision, processor=processor)


class PixtralProcessor:
    """Stand-in for transformers' processor for Pixtral, which needs torchvision."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = PixtralImageProcessorPil.from_pretrained(folder)
        self.settings = json.loads((folder / "processor_config.json").read_text())

    def __call__(self, images: list[Any], text: list[str], **options: Any) -> dict[str, Any]:
        side = self.settings["patch_size"] * self.settings.get("spatial_merge_size", 1)
        processed = dict(self.images(images, return_tensors="pt", patch_size=side))
        grids = [(height // side, width // side) for height, width in processed["image_sizes"]]
        rows = iter(["[IMG_BREAK]".join(["[IMG]" * columns] * rows) + "[IMG_END]" for rows, columns in grids])
        text = [re.sub(r"\[IMG\]", lambda _: next(rows), prompt) for prompt in text]
        return {**self.tokenizer(text, **options), **processed}


def load_stock_pixtral(folder: Path) -> Any:
    """Load the stock model, with the real processor if torchvision is installed."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    model.processor = (
        AutoProcessor.from_pretrained(folder, backend="pil") if find_spec("torchvision") else PixtralProcessor(folder)
    )
    return model


def llava_pixtral(folder: Path) -> None:
    """Pixtral: every grid of 16 x 16 patches, a break after each row, an end after the last; text Mistral."""
    tokenizer = words()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"], special_tokens=True)
    images = PixtralImageProcessorPil(size={"longest_edge": 1024})
    processor = LlavaProcessor(images, tokenizer, patch_size=16, image_token="[IMG]", chat_template=PIXTRAL_TEMPLATE)
    vision = PixtralVisionConfig(**SMALL, num_hidden_layers=3, image_size=1024, patch_size=16)
    llava(folder, "full", -1, text=MistralConfig, vision=vision, processor=processor)
    settings = {
        "processor_class": "PixtralProcessor",
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
        "patch_size": 16,
        "image_processor": json.loads((folder / "processor_config.json").read_text())["image_processor"],
    }
    (folder / "processor_config.json").write_text(json.dumps(settings))


PLAIN = TinyModel(llava)
FULL = TinyModel(partial(llava, strategy="full"))  # the stock model reads CLS, too
LAST = TinyModel(partial(llava, layer=-1))
LAYERS = TinyModel(partial(llava, layer=[-3, -1]))
# transformers runs Gemma 2 without SDPA, which does not cap attention scores.
GEMMA2 = TinyModel(partial(llava, text=Gemma2Config, head_dim=16, query_pre_attn_scalar=16, sliding_window=16))
# Layers of convolutions, whose state is not keys and values: prompts cannot share it.
LFM2 = TinyModel(partial(llava, text=Lfm2Config, layer_types=["conv", "full_attention"], tie_word_embeddings=False))
MISTRAL, QWEN2 = TinyModel(partial(llava, text=MistralConfig)), TinyModel(partial(llava, text=Qwen2Config))
SIGLIP = TinyModel(llava_siglip, ((384, 384), (500, 200), (90, 400)))
SIGLIP_LAST = TinyModel(partial(llava_siglip, layer=-1, head=False), ((384, 384), (90, 400)))
PIXTRAL = TinyModel(
    llava_pixtral, ((256, 256), (600, 90), (90, 640), (40, 24), (700, 560)), load_stock=load_stock_pixtral
)
