"""What Qwen's models read: the patches of a picture or clip, and where its tokens stand in a prompt.

Pictures go through the checkpoint's own processor. The video processors of transformers need torchvision, so the frames
of a clip go through the image processor, with the checkpoint's settings for video; frames that share a temporal patch
are put together here. Positions are those that the stock model counts, as ticks and advances of the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_clip
from transformers.video_processing_utils import BaseVideoProcessor

from prunesid_cli.errors import ModelError
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import REINSTALL, load_config, one_line
from prunesid_cli.models.shared.processor import load_processor, placeholder_ids, read_picture
from prunesid_cli.types import Layout, Pixels, Region

PICTURE, CLIP = 1, 2
"""As transformers numbers what is not text."""
STEPS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "patch_size", "merge_size")
SHARED = ("temporal_patch_size", "do_resize", "resample", *STEPS)
"""Settings for video that are those for pictures where a checkpoint does not say."""
LEAST, MOST = 128, 768
"""Tokens of a frame, in the limits of the stock video processors where a checkpoint has none."""
SECONDS = 0.5
"""From one frame to the next where a clip has but one."""


@dataclass(frozen=True)
class Clips:
    """How a kind of model sizes the frames of a clip, where the checkpoint does not say.

    side     of a token, in pixels
    ceiling  of tokens, where a checkpoint wants frames capped (`cap_pixels_per_frame`)
    resized  number, width, height of the frames and settings -> new height, width
    """

    side: int
    ceiling: int
    resized: Callable[[int, int, int, Any], tuple[int, int]]


def of_each_frame(frames: int, width: int, height: int, settings: Any) -> tuple[int, int]:
    """Qwen2-VL and Qwen2.5-VL: the limits are those of a frame, the ceiling that of a prompt of which it fills 90 %."""
    side, least, most = settings.side, settings.size["shortest_edge"], settings.size["longest_edge"]
    if settings.capped:
        share = int(settings.ceiling * side**2 * 0.9) * settings.temporal_patch_size // frames
        most = max(min(most, share), int(least * 1.05))
    return smart_resize(height, width, side, least, most)


def of_all_frames(frames: int, width: int, height: int, settings: Any) -> tuple[int, int]:
    """Qwen3-VL: the limits are those of the clip, the ceiling that of a frame. A clip has a temporal patch at least."""
    side, least, most = settings.side, settings.size["shortest_edge"], settings.size["longest_edge"]
    if settings.capped:
        most = frames * max(min(settings.ceiling * side**2, most // frames), int(least * 1.05))
    together = settings.temporal_patch_size
    return smart_resize_clip(max(frames, together), height, width, together, side, least, most)


CLIPS = {
    "qwen2_vl": Clips(28, 128000, of_each_frame),
    "qwen2_5_vl": Clips(28, 128000, of_each_frame),
    "qwen3_vl": Clips(32, 768, of_all_frames),
}


def video_settings(checkpoint: Checkpoint, images: Any) -> Any:
    """The settings of a checkpoint's video processor, read without it; images: the image processor.

    Raises:
        ModelError: its files cannot be read.
    """
    try:
        found, _ = BaseVideoProcessor.get_video_processor_dict(checkpoint.location, revision=checkpoint.commit)
    except (OSError, ValueError) as error:
        problem = f"cannot read how {checkpoint.name} sees clips: {one_line(error)}"
        raise ModelError(problem, REINSTALL) from error
    kind = CLIPS[checkpoint.model_type]
    size = {"shortest_edge": LEAST * kind.side**2, "longest_edge": MOST * kind.side**2, **(found.get("size") or {})}
    old = {"shortest_edge": found.get("min_pixels"), "longest_edge": found.get("max_pixels")}
    shared = {name: found.get(name, getattr(images, name)) for name in SHARED}
    return SimpleNamespace(
        size=size | {name: value for name, value in old.items() if value is not None},
        side=shared["patch_size"] * shared["merge_size"],
        capped=found.get("cap_pixels_per_frame"),
        ceiling=found.get("max_video_tokens", kind.ceiling),
        **shared,
    )


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
        self.placeholder_ids = placeholder_ids(load_config(checkpoint))
        self.count = count
        self.by_seconds = checkpoint.model_type == "qwen2_5_vl"
        self.resized = CLIPS[checkpoint.model_type].resized

    def picture(self, image: Image) -> Pixels:
        read = read_picture(self.processor, self.placeholder_ids, image)
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
        ticks, mrope_deltas = self._positions(runs, firsts, kind, grids)
        places = zip(firsts, times, ticks, strict=True)
        regions = tuple(Region(first, rows, columns, columns, time=time, tick=tick) for first, time, tick in places)
        return Layout(text, runs, regions, mrope_deltas)

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
