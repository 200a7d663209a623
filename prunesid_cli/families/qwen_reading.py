"""What Qwen's models read: the patches of a picture or clip, and where its tokens stand in a prompt.

Pictures go through the checkpoint's own processor. The video processors of transformers need torchvision, so the frames
of a clip go through the image processor, with the checkpoint's settings for video; frames that share a temporal patch
are put together here. Positions are those that the stock model counts, as ticks and advances of the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_clip
from transformers.video_processing_utils import BaseVideoProcessor

from prunesid_cli.families.checkpoint import Checkpoint
from prunesid_cli.families.loading import load_config
from prunesid_cli.families.processing import load_processor, placeholders, read_picture
from prunesid_cli.media import Media
from prunesid_cli.types import Layout, Pixels, Region

PICTURE, CLIP = 1, 2
"""As transformers numbers what is not text."""
STEPS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "patch_size", "merge_size")
SHARED = ("temporal_patch_size", "do_resize", "resample", *STEPS)
"""Settings for video that are those for pictures where a checkpoint does not say."""
CELL = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}
"""The side of a cell in pixels, for the limits of the stock video processors where a checkpoint has none."""
LEAST, MOST = 128, 768
"""Cells of a frame, in those limits."""
SECONDS = 0.5
"""From one frame to the next where a clip has but one."""


def video_settings(checkpoint: Checkpoint, images: Any) -> Any:
    """The settings of a checkpoint's video processor, read without it; images: the image processor."""
    found, _ = BaseVideoProcessor.get_video_processor_dict(checkpoint.location, revision=checkpoint.commit)
    area = CELL[checkpoint.model_type] ** 2
    size = {"shortest_edge": LEAST * area, "longest_edge": MOST * area, **(found.get("size") or {})}
    old = {"shortest_edge": found.get("min_pixels"), "longest_edge": found.get("max_pixels")}
    size |= {name: value for name, value in old.items() if value is not None}
    return SimpleNamespace(size=size, **{name: found.get(name, getattr(images, name)) for name in SHARED})


def of_each_frame(frames: int, width: int, height: int, settings: Any) -> tuple[int, int]:
    """Qwen2-VL and Qwen2.5-VL: the limits are those of a frame -> height, width."""
    cell, size = settings.patch_size * settings.merge_size, settings.size
    return smart_resize(height, width, cell, size["shortest_edge"], size["longest_edge"])


def of_all_frames(frames: int, width: int, height: int, settings: Any) -> tuple[int, int]:
    """Qwen3-VL: the limits are those of the clip, and a clip has one temporal patch at least -> height, width."""
    cell, size, together = settings.patch_size * settings.merge_size, settings.size, settings.temporal_patch_size
    limits = (size["shortest_edge"], size["longest_edge"])
    return smart_resize_clip(max(frames, together), height, width, together, cell, *limits)


def patches_of(frames: Sequence[Image], settings: Any, images: Any, resized: Callable[..., tuple[int, int]]) -> Any:
    """Frames -> patches [T * H * W, E] and their grid [1, 3]; the last one is repeated where it has no partner."""
    together = settings.temporal_patch_size
    if settings.do_resize:
        height, width = resized(len(frames), *frames[0].size, settings)
        frames = [one.resize((width, height), Resampling(settings.resample)) for one in frames]
    frames = [*frames, *[frames[-1]] * (-len(frames) % together)]
    steps = {name: getattr(settings, name) for name in STEPS}
    made = images(images=list(frames), return_tensors="pt", do_resize=False, temporal_patch_size=1, **steps)
    (_, high, wide), colours = made["image_grid_thw"][0].tolist(), 3
    apart = made["pixel_values"].view(-1, together, high * wide, colours, settings.patch_size**2)
    return apart.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1), torch.tensor([[len(apart), high, wide]])


class Reader:
    """Media -> pixels for the tower, the way of one checkpoint. `count` is the stock model's `get_rope_index`."""

    def __init__(self, checkpoint: Checkpoint, count: Callable[..., Any]) -> None:
        self.processor = load_processor(checkpoint)
        self.settings = video_settings(checkpoint, self.processor.image_processor)
        self.processor.video_processor = self.settings  # all that is asked of it here
        self.placeholders = placeholders(load_config(checkpoint))
        self.count = count
        self.by_seconds = checkpoint.model_type == "qwen2_5_vl"
        self.resized = of_all_frames if checkpoint.model_type == "qwen3_vl" else of_each_frame

    def picture(self, image: Image) -> Pixels:
        read = read_picture(self.processor, self.placeholders, image)
        grid = read.tensors["image_grid_thw"]
        tensors = {"pixel_values": read.tensors["pixel_values"], "image_grid_thw": grid}
        return Pixels(tensors, self._layout(read.text, read.runs, grid, PICTURE, {"image_grid_thw": grid}))

    def clip(self, media: Media) -> Pixels:
        patches, grid = patches_of(media.frames, self.settings, self.processor.image_processor, self.resized)
        grids: dict[str, Tensor] = {"video_grid_thw": grid}
        if self.by_seconds:
            grids["second_per_grid_ts"] = torch.tensor([self.settings.temporal_patch_size * _interval(media.times)])
        # Times are frame numbers at one frame a second.
        frames = SimpleNamespace(fps=1.0, frames_indices=list(media.times))
        written = self.processor.replace_video_token({"video_grid_thw": grid, "video_metadata": [frames]}, 0)
        token = self.processor.video_token
        run = re.compile(f"(?:{re.escape(token)})+")
        runs = tuple(len(found) // len(token) for found in run.findall(written))
        times = media.times[:: self.settings.temporal_patch_size]
        layout = self._layout(run.sub(token, written), runs, grid, CLIP, grids, times)
        return Pixels({"pixel_values_videos": patches, **grids}, layout)

    def _layout(
        self, text: str, runs: tuple[int, ...], grid: Tensor, kind: int, grids: Mapping[str, Tensor],
        times: Sequence[float | None] = (None,),
    ) -> Layout:  # fmt: skip
        rows, columns = (side // self.settings.merge_size for side in grid[0, 1:].tolist())
        firsts = range(0, sum(runs), rows * columns)
        ticks, advances = self._positions(runs, firsts, kind, grids)
        places = zip(firsts, times, ticks, strict=True)
        regions = tuple(Region(first, rows, columns, columns, time=time, tick=tick) for first, time, tick in places)
        return Layout(text, runs, regions, advances)

    def _positions(
        self, runs: Sequence[int], firsts: Sequence[int], kind: int, grids: Mapping[str, Tensor]
    ) -> tuple[list[int], tuple[int, ...]]:
        """The tick of each region and the advance of each run, from a prompt of a word before each run, and a last."""
        kinds = torch.tensor([one for run in runs for one in (0, *[kind] * run)] + [0])[None]
        time = self.count(torch.zeros_like(kinds), mm_token_type_ids=kinds, **grids)[0][0, 0]
        visual = time[kinds[0] == kind]
        words = time[kinds[0] == 0].tolist()
        owner = [number for number, run in enumerate(runs) for _ in range(run)]
        ticks = [int(visual[first]) - words[owner[first]] - 1 for first in firsts]
        return ticks, tuple(after - before - 1 for before, after in zip(words, words[1:], strict=False))


def _interval(times: Sequence[float]) -> float:
    """Seconds from one frame to the next."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else SECONDS
