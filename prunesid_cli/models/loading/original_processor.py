"""How an original LLaVA checkpoint reads pictures and text.

The tower's own preparation of pictures, padded to a square or cut into tiles where the settings say so; the tokenizer
of the checkpoint with `<image>`; and the way to chat that the model was taught, of which its files say nothing.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer, LlavaNextProcessor, LlavaProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import Checkpoint, resolve

IMAGE = "<image>"
PARTS = (
    "{% for part in message['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.{% for message in messages %}"
    "{% if message['role'] == 'user' %} USER: "
    + PARTS
    + "{% else %} ASSISTANT: "
    + PARTS
    + "{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] " + PARTS + " [/INST]"
    "{% else %} " + PARTS + "{{ eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "<|im_start|>system\nAnswer the questions.<|im_end|>{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n" + PARTS + "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Reader(NamedTuple):
    """The classes of transformers that read pictures for a type of model."""

    processor: Any
    images: Any


READERS = {
    "llava": Reader(LlavaProcessor, LlavaImageProcessorPil),
    "llava_next": Reader(LlavaNextProcessor, LlavaNextImageProcessorPil),
}


def processor(checkpoint: Checkpoint, config: Any) -> Any:
    """A processor of transformers; config: as `original.configuration` makes it."""
    said, reader, tower = checkpoint.original or {}, READERS[checkpoint.model_type], tower_of(checkpoint)
    images = AutoImageProcessor.from_pretrained(tower.location, revision=tower.commit, backend="pil").to_dict()
    images.pop("image_processor_type", None)
    if said.get("image_aspect_ratio") == "pad":
        images["do_pad"] = True
    words = tokenizer(checkpoint.location, checkpoint.commit, config.text_config.model_type)
    return reader.processor(
        reader.images(**{**images, **pinpoints(checkpoint)}),
        words,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=template(said["model_type"], words),
    )


def pinpoints(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes of grids, where there are any: theirs are width and height, those of transformers height and width."""
    if checkpoint.model_type != "llava_next":
        return {}
    said = (checkpoint.original or {})["image_grid_pinpoints"]
    return {"image_grid_pinpoints": [[height, width] for width, height in said]}


def template(model_type: str, words: Any) -> str:
    if "<|im_start|>" in words.get_vocab():
        return CHATML
    return MISTRAL if model_type == "llava_mistral" else VICUNA


def tokenizer(location: str, commit: str | None, text: str) -> Any:
    """text: the type of the language model, whose tokenizer it is; config.json would lead astray."""
    try:
        words = AutoTokenizer.from_pretrained(location, revision=commit, config=AutoConfig.for_model(text))
    except (OSError, ValueError, ImportError) as error:
        if find_spec("sentencepiece"):
            raise
        problem = f"the tokenizer of {location} needs packages that are not installed"
        raise ModelError(problem, "pip install sentencepiece protobuf") from error
    words.add_tokens([IMAGE], special_tokens=True)
    words.padding_side = "left"
    return words


@cache
def image_id(location: str, commit: str | None, text: str) -> int:
    """What stands for a slot of a picture; it may be beyond the model's vocabulary."""
    return int(tokenizer(location, commit, text).convert_tokens_to_ids(IMAGE))


def tower_of(checkpoint: Checkpoint) -> Checkpoint:
    return _found((checkpoint.original or {})["mm_vision_tower"])


@cache
def _found(name: str) -> Checkpoint:
    return resolve(name)
