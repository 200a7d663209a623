"""Video-LLaVA: two CLIP 224/14, 256 tokens and CLS, an MLP, Llama."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from prunesid_cli.types import Pixels
from tests.models.tiny.base import TinyModel, save, tower_pixels
from tests.models.tiny.tokenizers import build_uppercase_tokenizer

SIDE, PATCH = 224, 14
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
FRAMES = {
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def processor_files(folder: Path, strategy: str) -> int:
    """Write the files of a processor. Returns the size of the vocabulary."""
    words = build_uppercase_tokenizer(SPECIAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    words.chat_template = CHAT_TEMPLATE
    words.save_pretrained(folder)
    VideoLlavaImageProcessor().save_pretrained(folder)
    settings = {
        "processor_class": "VideoLlavaProcessor",
        "patch_size": PATCH,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
        "video_token": "<video>",
    }
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(FRAMES))
    return len(words)


def video_llava(folder: Path, strategy: str = "default") -> None:
    vocabulary = processor_files(folder, strategy)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
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
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        video_token_index=SPECIAL.index("<video>"),
        vision_feature_select_strategy=strategy,
    )
    save(VideoLlavaForConditionalGeneration, config, folder)


def _clip(pixels: Pixels) -> dict[str, object]:
    return {"pixel_values_videos": tower_pixels(pixels)[None]}


SIZES = ((224, 224), (400, 130), (90, 300), (5, 7), (60, 1), (30, 3), (3, 3), (1, 60))
# The stock processor guesses where the channels are. For an image 1 or 3 pixels high it guesses wrong.
TOLD = {"input_data_format": "channels_last"}
PLAIN = TinyModel(video_llava, SIZES, _clip, processor_options=TOLD)
FULL = TinyModel(partial(video_llava, strategy="full"), SIZES, _clip, processor_options=TOLD)
