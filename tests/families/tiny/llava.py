"""LLaVA-1.5: CLIP 336/14, 576 tokens and CLS, an MLP, Llama."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from prunesid_cli.demo.build import SPECIAL, build_processor, build_tokenizer
from tests.families.tiny.base import Tiny, save

SIDE, PATCH = 336, 14


def _processor(folder: Path, layer_strategy: str = "default") -> int:
    """Write a processor; returns the size of its vocabulary."""
    tokenizer = build_tokenizer(["USER: \nwhat is shown? ASSISTANT: a red square and a blue circle"] * 4)
    processor = build_processor(tokenizer)
    processor.vision_feature_select_strategy = layer_strategy
    processor.save_pretrained(folder)
    return len(tokenizer)


def llava(folder: Path, strategy: str = "default", layer: int = -2) -> None:
    vocabulary = _processor(folder, strategy)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    save(LlavaForConditionalGeneration, config, folder)


def llava_full(folder: Path) -> None:
    """The strategy `full`: the stock model reads CLS too."""
    llava(folder, strategy="full")


def llava_last(folder: Path) -> None:
    """Features of the last layer."""
    llava(folder, layer=-1)


PLAIN, FULL, LAST = Tiny(llava), Tiny(llava_full), Tiny(llava_last)
