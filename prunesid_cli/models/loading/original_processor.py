"""The processor of an original LLaVA checkpoint, built from classes of transformers.

The image processor has the settings of the vision tower, and pads to a square or cuts tiles if the checkpoint's
settings say so. The tokenizer is the checkpoint's own, plus `<image>`. The chat templates are those that the models
were trained with; the checkpoints do not contain them.
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

IMAGE_TOKEN = "<image>"
CONTENT_PARTS = (
    "{% for part in message['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.{% for message in messages %}"
    "{% if message['role'] == 'user' %} USER: "
    + CONTENT_PARTS
    + "{% else %} ASSISTANT: "
    + CONTENT_PARTS
    + "{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] " + CONTENT_PARTS + " [/INST]"
    "{% else %} " + CONTENT_PARTS + "{{ eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "<|im_start|>system\nAnswer the questions.<|im_end|>{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n" + CONTENT_PARTS + "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ProcessorClasses(NamedTuple):
    """The classes of transformers for one type of model."""

    processor: Any
    image_processor: Any


PROCESSOR_CLASSES = {
    "llava": ProcessorClasses(LlavaProcessor, LlavaImageProcessorPil),
    "llava_next": ProcessorClasses(LlavaNextProcessor, LlavaNextImageProcessorPil),
}


def load_original_processor(checkpoint: Checkpoint, config: Any) -> Any:
    """Build the processor of transformers for an original checkpoint.

    Args:
        checkpoint: The original checkpoint.
        config: Its configuration from `original_llava.build_config`.
    """
    settings = checkpoint.original_config or {}
    tower = resolve_tower(checkpoint)
    loaded = AutoImageProcessor.from_pretrained(
        tower.location, revision=tower.commit, backend="pil", trust_remote_code=False
    )
    image_settings = {**loaded.to_dict(), **grid_pinpoints(checkpoint)}
    image_settings.pop("image_processor_type", None)
    if settings.get("image_aspect_ratio") == "pad":
        image_settings["do_pad"] = True
    tokenizer = _load_tokenizer(checkpoint.location, checkpoint.commit, config.text_config.model_type)
    classes = PROCESSOR_CLASSES[checkpoint.model_type]
    return classes.processor(
        classes.image_processor(**image_settings),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=choose_chat_template(settings["model_type"], tokenizer),
    )


def grid_pinpoints(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes of tile grids as keyword arguments of transformers; empty for a model without tiles.

    The authors write width before height, transformers height before width.
    """
    if checkpoint.model_type != "llava_next":
        return {}
    sizes = (checkpoint.original_config or {})["image_grid_pinpoints"]
    return {"image_grid_pinpoints": [[height, width] for width, height in sizes]}


def choose_chat_template(model_type: str, tokenizer: Any) -> str:
    """The chat template that a checkpoint was trained with.

    Args:
        model_type: As in the original config.json.
        tokenizer: The checkpoint's tokenizer, whose vocabulary shows whether it uses ChatML.
    """
    if "<|im_start|>" in tokenizer.get_vocab():
        return CHATML
    return MISTRAL if model_type == "llava_mistral" else VICUNA


@cache
def find_image_token_id(location: str, commit: str | None, text_model_type: str) -> int:
    """The id of the placeholder for one visual token; it may lie beyond the model's vocabulary."""
    return int(_load_tokenizer(location, commit, text_model_type).convert_tokens_to_ids(IMAGE_TOKEN))


def resolve_tower(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of the vision tower that an original checkpoint names."""
    return _resolve_once((checkpoint.original_config or {})["mm_vision_tower"])


_resolve_once = cache(resolve)


def _load_tokenizer(location: str, commit: str | None, text_model_type: str) -> Any:
    """Load the tokenizer of the language model's type; transformers would choose a wrong class from config.json."""
    try:
        config = AutoConfig.for_model(text_model_type)
        tokenizer = AutoTokenizer.from_pretrained(location, revision=commit, config=config, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        if find_spec("sentencepiece"):
            raise
        problem = f"the tokenizer of {location} needs packages that are not installed"
        raise ModelError(problem, "pip install sentencepiece protobuf") from error
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.padding_side = "left"
    return tokenizer
