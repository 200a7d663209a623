"""The two halves of any model whose stock class takes features in place of pixels (`mm_encoder_outputs`)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
import transformers
from packaging import version
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from prunesid_cli.errors import MediaError, ModelError, UnsupportedModel
from prunesid_cli.inputs.image import Media, media_from_image
from prunesid_cli.models.loading.checkpoint import Checkpoint, first_line
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.mrope import with_mrope
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.models.shared.requirements import refuse_flash_attention
from prunesid_cli.models.shared.window_segments import window_segments
from prunesid_cli.models.spliced.clips import READERS
from prunesid_cli.models.spliced.layouts import REGIONS, ImageParts
from prunesid_cli.models.spliced.processor import SplicedProcessor, missing_package, random_image, row_of
from prunesid_cli.models.spliced.saliency import TowerSaliency, UnreadableTower
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Prompt, TokenSet

WINDOW_SIDE = 32
"""A segment has at most this many tokens squared."""
PROBE_SIZE = (640, 480)
"""Width and height of the image on which a tower's attention is looked for; larger than its windows."""
OTHER_TYPES_HINT = "see the types that are supported: prunesid models"
DEPTH_SETTINGS = ("num_hidden_layers", "depth")
LAYER_SETTINGS = ("deepstack_visual_indexes", "fullatt_block_indexes", "layer_types")
"""Settings that say how many layers a tower has, and that name some of them."""


class Spliced:
    """Family of the types in `table.TYPES`, and of those that are in no table."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse a type that the installed transformers does not know, or has no features in place of pixels for."""
        model_class(checkpoint)

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> SplicedVision:
        return SplicedVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> SplicedLanguage:
        return SplicedLanguage(checkpoint, placement)


def model_class(checkpoint: Checkpoint) -> Any:
    """The stock class of a checkpoint's type.

    Raises:
        UnsupportedModel: The installed transformers has none that takes features in place of pixels.
    """
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(checkpoint.model_type)
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    since, installed = row_of(checkpoint).since, transformers.__version__
    is_old = version.parse(installed) < version.parse(since)
    model_type = checkpoint.model_type
    if is_old or (found is None and model_type not in CONFIG_MAPPING_NAMES):
        problem = f"transformers {installed} does not run models of type {model_type!r}"
        raise UnsupportedModel(problem, f"pip install -U 'transformers{f'>={since}' if is_old else f'>{installed}'}'")
    if found is None:
        raise UnsupportedModel(f"a model of type {model_type!r} reads no images in a prompt", OTHER_TYPES_HINT)
    if "mm_encoder_outputs" not in signature(found.forward).parameters:
        problem = f"the model of type {model_type!r} in transformers takes no visual tokens in place of pixels"
        raise UnsupportedModel(problem, OTHER_TYPES_HINT)
    return found


class SplicedVision:
    """Vision half: an image of any kind of pixels -> tokens as the language model reads them."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        self.row = row_of(checkpoint)
        if self.row.joins_images:
            refuse_flash_attention(placement, checkpoint.model_type)
        self.placement = placement
        if self.row.drops_audio:
            config.audio_config = None
        self.model = load_vision_model(model_class(checkpoint), checkpoint, config, placement, ("language_model.",))
        self.base = self.model.base_model
        self.processor = self.load_processor(checkpoint)
        self.saliency = TowerSaliency(self.base, self.base.get_decoder())

    def load_processor(self, checkpoint: Checkpoint) -> Any:
        """Load what `preprocess` needs, and return the checkpoint's processor."""
        self.images = SplicedProcessor(checkpoint)
        self.arguments = signature(self.base.get_image_features).parameters
        self.fixed_short_side = self.images.fixed_short_side()
        reader = READERS.get(self.row.clips)
        self.reads_clips = reader is not None
        self.clips_need = self.images.clips_need or (missing_package(reader.needs) if reader else "")
        if version.parse(transformers.__version__) < version.parse(self.row.clips_since):
            self.clips_need = f"transformers>={self.row.clips_since}"
        if reader and not self.clips_need:
            self.clips = reader(checkpoint, self.images, self.model)
        return self.images.processor

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image or clip -> the arguments of the stock model's `get_image_features`."""
        if media.is_clip:
            return self.clips.process(media)
        try:
            processed = self.images.process(media.image)
        except ValueError as error:
            width, height = media.size
            problem = f"{media.source}: {width} x {height} pixels cannot be read by this model: {first_line(error)}"
            raise MediaError(problem, hint="crop it, so that no side is many times the other") from error
        tensors = {name: value for name, value in processed.tensors.items() if name in self.arguments}
        pixels = tensors.pop("pixel_values")
        if self.row.has_tile_axis:  # the tiles of one image have one size, so nothing in them is padding
            pixels, tensors = pixels[0], {}
        tensors = {
            "pixel_values": pixels.to(torch.uint8) if self.images.scale else pixels,
            **{name: torch.as_tensor(value) for name, value in tensors.items()},
        }
        regions = REGIONS[self.row.pixels](ImageParts(processed, media.size, self.processor, self.model.config))
        layout = Layout(processed.text, processed.runs, regions)
        if layout.num_visual != layout.total or any(region.stride != region.columns for region in regions):
            problem = (
                f"the grids of {media.source or 'an image'} cover {layout.num_visual} of its {layout.total} tokens"
            )
            raise ModelError(
                problem, f"kind of pixels {self.row.pixels!r} is wrong for {self.model.config.model_type!r}"
            )
        if self.row.places_text:
            layout = replace(layout, mrope_deltas=layout.runs)  # the language half counts all positions
        elif hasattr(self.base, "get_rope_index"):
            layout = with_mrope(layout, 1, self.images.image_id, self.base.get_rope_index, tensors)
        return Pixels(tensors, layout, self.images.scale)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images -> a segment for each window of each grid of tokens."""
        if not self.saliency.is_probed:
            probe = self.preprocess(media_from_image(random_image(PROBE_SIZE)))
            self.saliency.probe(lambda: self.features([probe])[0])
        is_mixed = len({next(iter(item.tensors)) for item in items}) > 1
        if len(items) > 1 and (is_mixed or not self.row.batched):
            return [encoded for item in items for encoded in self.encode([item])]
        keys = [grid_key(item) for item in items]
        with self.saliency.watch(keys) as recorded:
            tokens, extra = self.features(items)
        counts = [item.layout.total for item in items]
        rows = [item.num_rows for item in items]
        try:
            saliency = self.saliency.saliency(recorded, tokens, keys, counts, rows)
        except UnreadableTower as error:
            if len(items) > 1:
                return [encoded for item in items for encoded in self.encode([item])]
            raise ModelError(f"the saliency of this image cannot be found: {error}", "report it") from error
        tokens, encoded, start = tokens.detach(), list[Encoded](), 0
        for item in items:
            segments = []
            for region in item.layout.regions:
                slots = slice(start + region.first, start + region.first + region.rows * region.columns)
                others = None if extra is None else extra[slots]
                segments += window_segments(region, WINDOW_SIDE, tokens[slots], saliency[slots], others)
            encoded.append(Encoded(tuple(segments), item.layout))
            start += item.layout.total
        return encoded

    def features(self, items: Sequence[Pixels]) -> tuple[Tensor, Tensor | None]:
        """Run the tower and the projector on a batch.

        Returns:
            Tokens [T, D], and what is added to them in later layers (deepstack), [T, K * D] or None.
        """
        inputs = tower_inputs(items, self.placement)
        if self.row.has_tile_axis:
            inputs["pixel_values"] = inputs["pixel_values"][None]
        get_features = self.base.get_image_features if "pixel_values" in inputs else self.base.get_video_features
        output = get_features(**inputs, return_dict=True)
        deepstack = getattr(output, "deepstack_features", None)
        extra = torch.cat([join(layer).detach() for layer in deepstack], -1) if deepstack else None
        return join(output.pooler_output), extra


def tower_inputs(items: Sequence[Pixels], placement: Placement) -> dict[str, Tensor]:
    """The arguments of the stock model's `get_image_features`, or `get_video_features`, for a batch."""
    pixels, *others = items[0].tensors
    inputs = {pixels: upload_pixels(items, placement)}
    for name in others:
        inputs[name] = torch.cat([item.tensors[name] for item in items]).to(placement.device)
    return inputs


def join(features: Any) -> Tensor:
    """Features of images, as a list of tensors or as one tensor -> [T, D]."""
    if isinstance(features, torch.Tensor):
        return features.flatten(0, -2)
    return torch.cat([image.flatten(0, -2) for image in features])


def grid_key(item: Pixels) -> Hashable:
    """What the way from patches to tokens depends on: name and shape of the pixels, and all other arguments."""
    (name, pixels), *others = item.tensors.items()
    return (name, pixels.shape, *(tensor.cpu().numpy().tobytes() for _, tensor in others))


def remove_layers(config: Any) -> None:
    """Remove the layers of a tower from its configuration."""
    for name in DEPTH_SETTINGS:
        if hasattr(config, name):
            setattr(config, name, 0)
    for name in LAYER_SETTINGS:
        if getattr(config, name, None) is not None:
            setattr(config, name, [])


class SplicedLanguage(BaseLanguageHalf):
    """Language half: the stock model without the layers of its tower."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        row, config = row_of(checkpoint), load_config(checkpoint)
        self.places_text = row.places_text
        if row.joins_images:
            refuse_flash_attention(placement, checkpoint.model_type)
        images = SplicedProcessor(checkpoint)
        self.clips_need = images.clips_need
        self.joins_images, self.is_causal = row.joins_images, row.shares_prefix
        self.item_tokens = images.item_patterns()
        self.list_modalities = ("image", "video") if row.reads_list else ()
        if row.drops_audio:
            config.audio_config = None
        self.num_deepstack = len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
        remove_layers(config.vision_config)
        model = load_model_half(model_class(checkpoint), checkpoint, config, placement)
        super().__init__(model, images.processor)

    def tokenize(self, prompt: str, layouts: Sequence[Layout]) -> Tensor:
        """Number the images of a prompt, where the processor does."""
        if start := getattr(self.processor, "image_id_start_token", None):
            number = re.compile(re.escape(start) + r"\d+")
            layouts = [
                replace(layout, text=number.sub(f"{start}{place}", layout.text)) for place, layout in enumerate(layouts)
            ]
        return super().tokenize(prompt, layouts)

    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Prompt:
        """See `LanguageHalf.embed`. The stock model counts positions if text between parts of an image has places."""
        made = super().embed(prompt, items)
        if not self.places_text or not items:
            return made
        ids, layouts = self.tokenize(prompt, [item.layout for item in items]), [item.layout for item in items]
        is_visual, repeats = torch.isin(ids, torch.tensor(sorted(self.placeholder_ids))), torch.ones_like(ids)
        repeats[is_visual] = torch.tensor([run for layout in layouts for run in layout.runs])
        ids, is_visual = ids.repeat_interleave(repeats), is_visual.repeat_interleave(repeats)
        types = torch.zeros_like(ids)
        for number, token_id in enumerate(self.modalities.values(), 1):
            types[ids == token_id] = number
        merge = 2 if self.model.config.downsample_mode == "4x" else 4
        sizes = {
            name: torch.tensor([[merge * region.rows, merge * region.columns] for region in regions])
            for name, is_clip in (("target_sizes", False), ("target_sizes_videos", True))
            if (regions := [region for layout in layouts if layout.is_clip == is_clip for region in layout.regions])
        }
        positions, _ = self.model.base_model.get_rope_index(ids[None], mm_token_type_ids=types[None], **sizes)
        is_read = ~is_visual
        is_kept = [torch.zeros(layout.total, dtype=torch.bool) for layout in layouts]
        for kept, item in zip(is_kept, items, strict=True):
            kept[list(item.slots)] = True
        is_read[is_visual] = torch.cat(is_kept)
        return replace(made, positions=positions[:, 0, is_read])

    def render_chat(self, conversation: list[dict[str, Any]]) -> str:
        """Refuse clips that the processor cannot write: their tokens may come from a cache."""
        if self.clips_need and any(part["type"] == "video" for turn in conversation for part in turn["content"]):
            raise ModelError(
                f"prompts about clips need the package {self.clips_need}", f"pip install {self.clips_need}"
            )
        return super().render_chat(conversation)

    def encoder_output(self, rows: Sequence[Tensor], modality: str) -> BaseModelOutputWithPooling:
        """Add the embeddings that Ovis2 has for the marks around its tiles, which come last in its table."""
        output = super().encoder_output(rows, modality)
        if (marks := getattr(self.model.base_model, "visual_indicator_token_ids", None)) is not None:
            output["visual_indicator_features"] = self.model.base_model.visual_embeddings_table.weight[-len(marks) :]
        return output

    def model_inputs(self, prompts: Sequence[Prompt], num_cached: int = 0) -> dict[str, Any]:
        """Add which tokens go to the experts for images, where a model has any: those of images and their ends."""
        inputs = super().model_inputs(prompts, num_cached)
        if "moe_mm_token_type_ids" in self.arguments:
            names = [f"{kind}_{end}_token_id" for kind in ("image", "video") for end in ("start", "end")]
            ends = [value for name in names if (value := getattr(self.model.config, name, None)) is not None]
            is_end = torch.isin(inputs["input_ids"], torch.tensor(ends, device=inputs["input_ids"].device))
            inputs["moe_mm_token_type_ids"] = inputs["mm_token_type_ids"] | is_end
        return inputs
