"""The checkpoint's own processor, without torchvision, and the text that it writes into a prompt for an image.

The PIL backend of transformers' image processors is always used: so pixels, and the kept tokens, are the same with and
without torchvision (its resizing differs by up to two steps of 255, .03 after normalisation). The video processors of
transformers need torchvision, so they are not used; frames go through the image processor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL.Image import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, ProcessorMixin

# In transformers 5.17 the AutoImageProcessor of the top level is a dummy.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.video_processing_utils import BaseVideoProcessor

from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import REINSTALL_HINT, Checkpoint, first_line, loading_error
from prunesid_cli.models.loading.original_processor import load_original_processor
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.token_grid import centered_box
from prunesid_cli.types import Box

FRAME_SETTINGS = (
    "do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size",
    "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip
"""Settings for a single frame that image processors and video processors have under the same names."""
ITEM_TOKEN_NAME = re.compile("(?=.*(im(a)?ge?|video|vision|tile|slice|boi|eoi)).*_(token|tag)")
"""Attributes of processors and tokenizers that hold a token which a processor writes for an image or clip."""


def load_processor(
    checkpoint: Checkpoint,
    processor_class: Any = None,
    image_processor_class: Any = None,
    needs_video_processor: bool = False,
) -> Any:
    """Load a checkpoint's processor: image processor, tokenizer and chat template, but no video processor.

    Args:
        checkpoint: Where its files are.
        processor_class: Its class; None for the one that transformers has for the configuration.
        image_processor_class: The class of its image processor; None for the one that transformers finds.
        needs_video_processor: Whether its class reads settings of the video processor; those of the image processor
            take their place.

    Raises:
        ModelError: Its files cannot be read.
    """
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": checkpoint.location,
        "revision": checkpoint.commit,
        "trust_remote_code": False,
    }
    try:
        if checkpoint.original_config:
            return load_original_processor(checkpoint, load_config(checkpoint))
        processor_class = processor_class or PROCESSOR_MAPPING[type(load_config(checkpoint))]
        if image_processor_class:
            image_processor = image_processor_class.from_pretrained(**source)
        else:
            image_processor = AutoImageProcessor.from_pretrained(**source, backend="pil")
        parts = {"image_processor": image_processor, "tokenizer": AutoTokenizer.from_pretrained(**source)}
        if needs_video_processor:
            parts["video_processor"] = image_processor

        class PartialProcessor(processor_class):  # type: ignore[misc, valid-type]
            """Accepts anything as its video processor, which is not used."""

            def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
                is_unused = argument is None or argument_name == "video_processor"
                return None if is_unused else super().check_argument_for_proper_class(argument_name, argument)

        PartialProcessor.__name__ = processor_class.__name__
        arguments = [parts.get(name) for name in processor_class.get_attributes()]
        return PartialProcessor.from_args_and_dict(arguments, load_processor_settings(checkpoint))
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise loading_error(checkpoint, f"cannot load the processor of {checkpoint.name}", error) from error


def load_processor_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's settings of the processor itself, without those of its image processor and tokenizer."""
    settings, _ = ProcessorMixin.get_processor_dict(checkpoint.location, revision=checkpoint.commit)
    return dict(settings)


def load_video_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's settings of the video processor; those for images if there are none, as in transformers.

    Raises:
        ModelError: Its files cannot be read.
    """
    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(checkpoint.location, revision=checkpoint.commit)
    except (OSError, ValueError) as error:
        problem = f"cannot read the video settings of {checkpoint.name}: {first_line(error)}"
        raise ModelError(problem, REINSTALL_HINT) from error
    return dict(settings)


def load_frame_processor(checkpoint: Checkpoint, image_processor: Any) -> Any:
    """Load an image processor for the frames of clips, for models that see each frame as a whole.

    Args:
        checkpoint: Its settings for video are used.
        image_processor: Its image processor, whose settings are used where those for video are missing.
    """
    settings = load_video_settings(checkpoint)
    return CLIPImageProcessorPil(
        **{name: settings.get(name, getattr(image_processor, name, None)) for name in FRAME_SETTINGS}
    )


def read_frame_options(checkpoint: Checkpoint, image_processor: Any) -> dict[str, Any]:
    """Arguments that make an image processor treat an image as the checkpoint's video processor treats a frame."""
    settings = load_video_settings(checkpoint)
    names = [name for name in FRAME_SETTINGS if hasattr(image_processor, name)]
    return {name: settings[name] for name in names if settings.get(name) is not None}


def placeholder_text(processor: Any, is_clip: bool) -> str | None:
    """The text that a chat template writes for an image or clip, and that the processor then expands; None if none."""
    names = ("video_token",) if is_clip else ("image_placeholder_token", "image_token")
    return next((text for name in names if (text := getattr(processor, name, None))), None)


def item_tokens(processor: Any) -> set[str]:
    """The tokens that a processor writes into a prompt for an image or clip, as far as it names them."""
    named = {**getattr(processor.tokenizer, "_special_tokens_map", {}), **vars(processor.tokenizer), **vars(processor)}
    return {text for name, text in named.items() if ITEM_TOKEN_NAME.fullmatch(name) and isinstance(text, str) and text}


def placeholder_ids(config: Any) -> frozenset[int]:
    """The token ids whose embeddings a model replaces by visual tokens."""
    return frozenset(modality_ids(config).values())


def modality_ids(config: Any) -> dict[str, int]:
    """The name of a stock model for visual tokens -> their placeholder: "image", and "video" if it is another one."""
    ids = dict[str, int]()
    for modality in ("image", "video"):
        values = [getattr(config, f"{modality}_token_{suffix}", None) for suffix in ("id", "index")]
        token_id = next((value for value in values if isinstance(value, int)), None)
        if token_id is not None and token_id not in ids.values():
            ids[modality] = token_id
    return ids


def supports_clips(vision: Any) -> bool:
    """Whether a prompt for a vision half's checkpoint can contain a clip."""
    has_text = placeholder_text(getattr(vision, "processor", None), True) is not None
    return has_text and getattr(vision, "reads_clips", True)


def resized_short_side(image_processor: Any) -> int | None:
    """Number of pixels of an image's shorter side after an image processor resized it; None if it does not resize."""
    lengths = [length for name in ("shortest_edge", "height", "width") if (length := image_processor.size.get(name))]
    return max(lengths) if image_processor.do_resize and lengths else None


def visible_box(image_processor: Any, size: tuple[int, int]) -> Box:
    """What is left of an image after an image processor padded it to a square, resized it and cropped its center.

    Args:
        image_processor: Its settings say which of these steps it does.
        size: Width and height of the image in pixels.
    """
    width, height = 2 * (max(size),) if getattr(image_processor, "do_pad", False) else size
    if getattr(image_processor, "do_center_crop", False):
        resize = dict(image_processor.size) if image_processor.do_resize else {}
        crop = image_processor.crop_size
        scale = resize["shortest_edge"] / min(width, height) if "shortest_edge" in resize else 1
        width = width * crop["width"] / resize.get("width", scale * width)
        height = height * crop["height"] / resize.get("height", scale * height)
    return centered_box(width / size[0], height / size[1])


def pad_instead_of_cropping(image_processor: Any) -> Any:
    """An image processor that pads images to squares with the mean color, as the authors of LLaVA-1.5 do.

    Args:
        image_processor: Its other settings are kept. If it does not crop the center of images, it is returned itself.
    """
    if not getattr(image_processor, "do_center_crop", False):
        return image_processor
    settings = {name: getattr(image_processor, name, None) for name in FRAME_SETTINGS}
    return LlavaImageProcessorPil(**settings, do_pad=True)


@dataclass(frozen=True)
class ProcessedImage:
    """What a processor returns for one image.

    Attributes:
        tensors: The processor's tensors by name.
        text: Text of the image in a prompt, as in `Layout`: one placeholder for each run of visual tokens.
        runs: Number of visual tokens of each placeholder.
    """

    tensors: Mapping[str, Any]
    text: str
    runs: tuple[int, ...]


def write_rows(processor: Any, settings: Mapping[str, Any], rows: int) -> str:
    """The text that Pixtral's processor writes for an image, which needs torchvision: a placeholder for each row.

    Args:
        processor: The processor, whose placeholder is written.
        settings: The checkpoint's settings of the processor.
        rows: Rows of visual tokens.
    """
    line_end, end = settings.get("image_break_token", "[IMG_BREAK]"), settings.get("image_end_token", "[IMG_END]")
    return str(line_end).join([str(placeholder_text(processor, False))] * rows) + str(end)


def process_image(processor: Any, placeholder_ids: frozenset[int], image: Image, **options: Any) -> ProcessedImage:
    """Run a checkpoint's processor on one image.

    Args:
        processor: The processor.
        placeholder_ids: The model's placeholders, from `placeholder_ids`.
        image: The image.
        options: More arguments of the processor.
    """
    tensors = processor(
        text=[placeholder_text(processor, False)],
        images=[image],
        return_tensors="pt",
        add_special_tokens=False,
        **options,
    )
    token_ids = tensors["input_ids"][0].tolist()
    return ProcessedImage(tensors, *collapse_placeholders(processor.tokenizer, token_ids, placeholder_ids))


def collapse_text(processor: Any, placeholder_ids: frozenset[int], text: str) -> tuple[str, tuple[int, ...]]:
    """`collapse_placeholders` for the text that a processor writes for an item."""
    token_ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return collapse_placeholders(processor.tokenizer, token_ids, placeholder_ids)


def collapse_placeholders(
    tokenizer: Any, token_ids: Sequence[int], placeholder_ids: frozenset[int]
) -> tuple[str, tuple[int, ...]]:
    """Decode token ids, with one placeholder for each run of placeholders.

    Args:
        tokenizer: The checkpoint's tokenizer.
        token_ids: An item's tokens as the stock processor writes them: a placeholder for each visual token.
        placeholder_ids: The ids of placeholders.

    Returns:
        The text, and the length of each run of placeholders.
    """
    text, runs = "", []
    for is_visual, group in groupby(token_ids, lambda token: token in placeholder_ids):
        ids = list(group)
        if is_visual:
            runs.append(len(ids))
        text += tokenizer.decode(ids[:1] if is_visual else ids, skip_special_tokens=False)
    return text, tuple(runs)
