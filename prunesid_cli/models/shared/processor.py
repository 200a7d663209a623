"""The checkpoint's own processor, without torchvision, and what it writes into a prompt for a picture.

The PIL backend of transformers' image processors is used everywhere: pixels, and so the kept tokens, are the same with
torchvision installed or without it (its resizing differs by up to two steps of 255, .03 normalised). The video
processors of transformers need torchvision, so they stay away; frames go through the image processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # of 5.17's top level, a dummy
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.video_processing_utils import BaseVideoProcessor

from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import REINSTALL_HINT, Checkpoint, first_line
from prunesid_cli.models.loading.original_processor import load_original_processor
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.token_grid import Box, centered_box

FRAME_SETTINGS = (
    "do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size",
    "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip
"""What image and video processors call alike, of what is done to each frame."""


def load_processor(checkpoint: Checkpoint, kind: Any = None, images: Any = None) -> Any:
    """The processor of a checkpoint: image processor, tokenizer, chat template, and no video processor.

    kind, images: its class and that of its image processor, where they are not those that transformers would find.

    Raises:
        ModelError: its files cannot be read.
    """
    where = {"pretrained_model_name_or_path": checkpoint.location, "revision": checkpoint.commit}
    try:
        if checkpoint.original_config:
            return load_original_processor(checkpoint, load_config(checkpoint))
        kind = kind or PROCESSOR_MAPPING[type(load_config(checkpoint))]
        parts = {
            "image_processor": images.from_pretrained(**where)
            if images
            else AutoImageProcessor.from_pretrained(**where, backend="pil"),
            "tokenizer": AutoTokenizer.from_pretrained(**where),
        }
        settings = load_processor_settings(checkpoint)
        return _without_video(kind).from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        problem = f"cannot load the processor of {checkpoint.name}: {first_line(error)}"
        raise ModelError(problem, REINSTALL_HINT) from error


def load_processor_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says of its processor, image processor and tokenizer apart."""
    settings, _ = ProcessorMixin.get_processor_dict(checkpoint.location, revision=checkpoint.commit)
    return dict(settings)


def _without_video(kind: Any) -> Any:
    """A kind of processor that can do without a part."""

    class Partial(kind):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    Partial.__name__ = kind.__name__
    return Partial


def load_video_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says of clips; of pictures, where it says nothing more, as transformers does.

    Raises:
        ModelError: its files cannot be read.
    """
    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(checkpoint.location, revision=checkpoint.commit)
    except (OSError, ValueError) as error:
        problem = f"cannot read how {checkpoint.name} sees clips: {first_line(error)}"
        raise ModelError(problem, REINSTALL_HINT) from error
    return dict(settings)


def placeholder_text(processor: Any, is_clip: bool) -> str | None:
    """What a chat template writes for a picture or a clip, and the processor then replaces; None if there is none."""
    return getattr(processor, "video_token" if is_clip else "image_token", None)


def supports_clips(vision: Any) -> bool:
    """Whether a vision half's checkpoint can say in a prompt where a clip is."""
    return placeholder_text(getattr(vision, "processor", None), True) is not None


def resized_short_side(images: Any) -> int | None:
    """How many pixels the shorter side of every picture has once an image processor has resized it; None: as many as it
    had."""
    known = [length for name in ("shortest_edge", "height", "width") if (length := images.size.get(name))]
    return max(known) if images.do_resize and known else None


def fixed_short_side(vision: Any) -> int | None:
    """How many pixels of a picture's shorter side a vision half reads, however many there are; None: of more it reads
    more."""
    return getattr(vision, "fixed_short_side", None)


def placeholder_ids(config: Any) -> frozenset[int]:
    """The ids whose embeddings a model replaces by visual tokens."""
    names = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
    return frozenset(value for name in names if isinstance(value := getattr(config, name, None), int))


@dataclass(frozen=True)
class ProcessedImage:
    """What a processor makes of one picture: `tensors` by name, and how it is written into a prompt: as in `Layout`."""

    tensors: Mapping[str, Any]
    text: str
    runs: tuple[int, ...]


def process_image(processor: Any, ids: frozenset[int], image: Image, **options: Any) -> ProcessedImage:
    """Put one picture through the checkpoint's processor; ids: the model's placeholders."""
    made = processor(
        text=[placeholder_text(processor, False)],
        images=[image],
        return_tensors="pt",
        add_special_tokens=False,
        **options,
    )
    return ProcessedImage(made, *collapse_placeholders(processor.tokenizer, made["input_ids"][0].tolist(), ids))


def preprocess_frames(processor: Any, frames: Sequence[Image], **options: Any) -> Tensor:
    """Pictures as the image processor alone makes them, for towers that see each whole: [S, 3, H, W]."""
    pixels: Tensor = processor.image_processor(images=list(frames), return_tensors="pt", **options)["pixel_values"]
    return pixels


def visible_box(images: Any, size: tuple[int, int]) -> Box:
    """What of a picture of some width and height is left by an image processor that may pad it to a square, resizes it
    and may crop it to its middle."""
    width, height = 2 * (max(size),) if getattr(images, "do_pad", False) else size
    if getattr(images, "do_center_crop", False):
        to, crop = dict(images.size) if images.do_resize else {}, images.crop_size
        scale = to["shortest_edge"] / min(width, height) if "shortest_edge" in to else 1
        width = width * crop["width"] / to.get("width", scale * width)
        height = height * crop["height"] / to.get("height", scale * height)
    return centered_box(width / size[0], height / size[1])


def read_frame_options(checkpoint: Checkpoint, pictures: Any) -> dict[str, Any]:
    """How an image processor makes of a frame what the checkpoint's video processor would."""
    settings, names = load_video_settings(checkpoint), [name for name in FRAME_SETTINGS if hasattr(pictures, name)]
    return {name: settings[name] for name in names if settings.get(name) is not None}


def collapse_text(processor: Any, ids: frozenset[int], text: str) -> tuple[str, tuple[int, ...]]:
    """What a processor writes for an item -> text and runs, as in `Layout`."""
    return collapse_placeholders(
        processor.tokenizer, processor.tokenizer(text, add_special_tokens=False)["input_ids"], ids
    )


def load_frame_processor(checkpoint: Checkpoint, pictures: Any) -> Any:
    """What does to frames what the checkpoint's settings for clips say; where those are silent, its processor of
    pictures decides. For models that see each frame whole."""
    said = load_video_settings(checkpoint)
    return CLIPImageProcessorPil(**{name: said.get(name, getattr(pictures, name, None)) for name in FRAME_SETTINGS})


def collapse_placeholders(tokenizer: Any, written: Sequence[int], ids: frozenset[int]) -> tuple[str, tuple[int, ...]]:
    """Token ids as text in which each run of placeholders is one, and the lengths of the runs."""
    text, runs = "", []
    for is_visual, group in groupby(written, lambda token: token in ids):
        some = list(group)
        if is_visual:
            runs.append(len(some))
        text += tokenizer.decode(some[:1] if is_visual else some, skip_special_tokens=False)
    return text, tuple(runs)
