"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a tower of its own for pictures of any size, M-RoPE. Cut after the merger.

The merger makes one token of each cell of 2 x 2 patches, as wide as the language model. There is no CLS: saliency is
the attention that a cell receives in the last layer that sees whole pictures. Qwen3-VL adds the features of K more
layers to the visual tokens inside the language model (deepstack); they stand after the tokens' own, [T, D * (1 + K)].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor

from prunesid_cli.errors import MediaError, UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_half, load_vision, one_line
from prunesid_cli.models.qwen_vl.processor import Reader
from prunesid_cli.models.qwen_vl.saliency import saliency_beside
from prunesid_cli.models.shared.language_half import Language, left_pad
from prunesid_cli.models.shared.processor import load_processor
from prunesid_cli.models.shared.token_grid import windows
from prunesid_cli.selection.methods.prunesid import published_qwen
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Prompt, Region, Segment

KINDS = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
LAYERS_NAMED = ("fullatt_block_indexes", "deepstack_visual_indexes")
"""Settings that name layers of the tower, where a kind has them."""
SIDE = 32
"""Of a window that one selection runs over, in tokens."""


class QwenVL:
    """model_type `qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`."""

    def check(self, checkpoint: Checkpoint) -> None:
        tower = load_config(checkpoint).vision_config
        if not getattr(tower, "fullatt_block_indexes", [0]):
            raise UnsupportedModel(
                f"{checkpoint.name} has no layer that sees whole pictures (fullatt_block_indexes is empty)",
                hint="Qwen2.5-VL is supported with at least one",
            )

    def vision(self, checkpoint: Checkpoint, placement: Placement) -> QwenVision:
        return QwenVision(checkpoint, placement)

    def language(self, checkpoint: Checkpoint, placement: Placement) -> QwenLanguage:
        return QwenLanguage(checkpoint, placement)


class QwenVision:
    methods = {"prunesid-published": published_qwen}
    """Names of selection methods that mean another one for this family."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        kind = getattr(transformers, KINDS[checkpoint.model_type])
        self.placement = placement
        self.model = load_vision(kind, checkpoint, config, placement)
        self.tower = self.model.model.visual
        self.seeing = self.tower.blocks[max(getattr(config.vision_config, "fullatt_block_indexes", [-1]))].attn
        self.reader = Reader(checkpoint, self.model.model.get_rope_index)
        self.processor = self.reader.processor

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        try:
            return self.reader.clip(media) if media.is_clip else self.reader.picture(media.image)
        except ValueError as error:
            width, height = media.size
            raise MediaError(
                f"{media.source}: {width} x {height} pixels cannot be read by this model: {one_line(error)}",
                hint="crop it, so that no side is more than 200 times the other",
            ) from error

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        patches, grids = (torch.cat(parts) for parts in zip(*map(_read, items), strict=True))
        lengths = [height * width for time, height, width in grids.tolist() for _ in range(time)]
        device, dtype = self.placement.device, self.placement.dtype
        with saliency_beside(self.seeing, self.tower.merger, lengths):
            made = self.tower(patches.to(device, dtype), grid_thw=grids.to(device))
        merged, added = made.pooler_output, getattr(made, "deepstack_features", None)
        parts = [merged[:, :-1].to(dtype), merged[:, -1:], *([torch.cat(added, -1)] if added else [])]
        totals = [item.layout.total for item in items]
        owned = zip(items, *(part.split(totals) for part in parts), strict=True)
        return [Encoded(tuple(_segments(item.layout, *own)), item.layout) for item, *own in owned]


def _read(item: Pixels) -> tuple[Tensor, Tensor]:
    """The patches and grids of a picture or clip, which the tower takes alike."""
    is_clip = "pixel_values_videos" in item.tensors
    patches, grid = ("pixel_values_videos", "video_grid_thw") if is_clip else ("pixel_values", "image_grid_thw")
    return item.tensors[patches], item.tensors[grid]


def _segments(layout: Layout, features: Tensor, saliency: Tensor, extra: Tensor | None = None) -> Iterator[Segment]:
    """One for each window of each picture or temporal patch of an item."""
    slots = torch.arange(layout.total)[:, None]
    for region in layout.regions:
        for window in windows(region.rows, region.columns, SIDE):
            yield Segment(
                _cut(features, region, window),
                _cut(saliency, region, window).flatten(),
                extra=None if extra is None else _cut(extra, region, window),
                slots=tuple(_cut(slots, region, window).flatten().tolist()),
            )


def _cut(rows: Tensor, region: Region, window: tuple[slice, slice]) -> Tensor:
    """The rows [N, E] of a window of a region of [total, E]."""
    raster = rows[region.first : region.first + region.rows * region.columns].unflatten(0, (region.rows, -1))
    return raster[window].flatten(0, 1)


class QwenLanguage(Language):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.depth = 0
        for name in LAYERS_NAMED:
            if hasattr(config.vision_config, name):
                setattr(config.vision_config, name, [])
        kind = getattr(transformers, KINDS[checkpoint.model_type])
        super().__init__(load_half(kind, checkpoint, config, placement), load_processor(checkpoint))

    def project(self, tokens: Tensor) -> Tensor:
        """They come out of the merger as the language model reads them."""
        return tokens

    def around(self, prompts: Sequence[Prompt]) -> AbstractContextManager[None]:
        added = [prompt.deepstack for prompt in prompts if prompt.deepstack is not None]
        return deepstacked(self.model.model.language_model, prompts, torch.cat(added, 1)) if added else nullcontext()


@contextmanager
def deepstacked(language_model: Any, prompts: Sequence[Prompt], added: Tensor) -> Iterator[None]:
    """While open, a language model that is given a left-padded batch of prompts, or the last columns of one, is given,
    too, what is added to their visual tokens after each of its first layers: [K, V, D], V of all prompts. `generate`
    takes no such thing."""
    visual = left_pad([prompt.visual[:, None].long() for prompt in prompts])[0][..., 0].bool()

    def give(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hook.remove()  # what is read next are words
        start = visual.shape[1] - kwargs["inputs_embeds"].shape[1]
        mask = visual[:, start:].to(kwargs["inputs_embeds"].device)
        rest = added[:, (visual.nonzero()[:, 1] >= start).to(added.device)]
        return args, {**kwargs, "visual_pos_masks": mask, "deepstack_visual_embeds": list(rest)}

    hook = language_model.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
