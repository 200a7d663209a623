"""Preprocessing of Qwen's models: the patches of an image or clip, and the layout of its tokens in a prompt.

Images go through the checkpoint's own processor. The video processors of transformers need torchvision, so the frames
of a clip go through the image processor, with the checkpoint's settings for video; frames that share a temporal patch
are joined here. Positions are counted by the stock model and stored in the layout as ticks and M-RoPE deltas.
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

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.pixel_scale import split_scale
from prunesid_cli.models.shared.processor import load_processor, load_video_settings, placeholder_ids, process_image
from prunesid_cli.types import Layout, Pixels, Region

IMAGE_TYPE, VIDEO_TYPE = 1, 2
"""Values of `mm_token_type_ids` in transformers; text is 0."""
PATCH_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "patch_size", "merge_size")
"""Settings of the image processor that make patches of a frame after it was resized."""
SHARED_SETTINGS = ("temporal_patch_size", "do_resize", "resample", *PATCH_SETTINGS)
"""Settings for video that default to those for images."""
MIN_FRAME_TOKENS, MAX_FRAME_TOKENS = 128, 768
"""Limits of the stock video processors, where a checkpoint has none."""
SINGLE_FRAME_SECONDS = 0.5
"""Time between frames of a clip that has only one."""


def frame_size_per_frame(num_frames: int, width: int, height: int, settings: Any) -> tuple[int, int]:
    """Size of the frames for Qwen2-VL and Qwen2.5-VL, whose pixel limits hold for each frame.

    With `cap_pixels_per_frame`, a clip also fills at most 90 % of `max_tokens`, the length of a prompt.

    Args:
        num_frames: Number of frames.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        settings: Settings for video, as `load_clip_settings` returns them.

    Returns:
        New height and width in pixels, multiples of a token's side.
    """
    side, lowest, highest = settings.token_side, settings.size["shortest_edge"], settings.size["longest_edge"]
    if settings.is_capped:
        share = int(settings.max_tokens * side**2 * 0.9) * settings.temporal_patch_size // num_frames
        highest = max(min(highest, share), int(lowest * 1.05))
    return smart_resize(height, width, side, lowest, highest)


def frame_size_per_clip(num_frames: int, width: int, height: int, settings: Any) -> tuple[int, int]:
    """Size of the frames for Qwen3-VL, whose pixel limits hold for the whole clip of at least one temporal patch.

    With `cap_pixels_per_frame`, a frame also has at most `max_tokens`. Arguments as in `frame_size_per_frame`.
    """
    side, lowest, highest = settings.token_side, settings.size["shortest_edge"], settings.size["longest_edge"]
    if settings.is_capped:
        highest = num_frames * max(min(settings.max_tokens * side**2, highest // num_frames), int(lowest * 1.05))
    temporal = settings.temporal_patch_size
    return smart_resize_clip(max(num_frames, temporal), height, width, temporal, side, lowest, highest)


@dataclass(frozen=True)
class FrameSizing:
    """How a model type sizes the frames of a clip.

    Attributes:
        token_side: Side of a token in pixels, for the limits of the stock video processor.
        max_tokens: Token limit of `cap_pixels_per_frame`, where a checkpoint has no `max_video_tokens`.
        frame_size: Number, width and height of the frames, and settings -> new height and width.
    """

    token_side: int
    max_tokens: int
    frame_size: Callable[[int, int, int, Any], tuple[int, int]]


FRAME_SIZING = {
    "qwen2_vl": FrameSizing(28, 128000, frame_size_per_frame),
    "qwen2_5_vl": FrameSizing(28, 128000, frame_size_per_frame),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), FrameSizing(32, 768, frame_size_per_clip)),
}
"""By model_type."""


def load_clip_settings(checkpoint: Checkpoint, image_processor: Any) -> Any:
    """Load the settings of a checkpoint's video processor, without the video processor.

    Args:
        checkpoint: The checkpoint.
        image_processor: Its image processor, whose settings are the defaults.

    Returns:
        `size`, pixel limits; `token_side` in pixels; `is_capped`; `max_tokens`; and SHARED_SETTINGS.

    Raises:
        ModelError: The files cannot be read.
    """
    stored = load_video_settings(checkpoint)
    sizing = FRAME_SIZING[checkpoint.model_type]
    size = {
        "shortest_edge": MIN_FRAME_TOKENS * sizing.token_side**2,
        "longest_edge": MAX_FRAME_TOKENS * sizing.token_side**2,
        **(stored.get("size") or {}),
    }
    # The older names of the limits come first.
    for name, old_name in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        if stored.get(old_name) is not None:
            size[name] = stored[old_name]
    shared = {name: stored.get(name, getattr(image_processor, name)) for name in SHARED_SETTINGS}
    return SimpleNamespace(
        size=size,
        token_side=shared["patch_size"] * shared["merge_size"],
        is_capped=stored.get("cap_pixels_per_frame"),
        max_tokens=stored.get("max_video_tokens", sizing.max_tokens),
        **shared,
    )


class QwenPreprocessor:
    """Images and clips -> pixels for the tower, with the layout of their tokens.

    Args:
        checkpoint: The checkpoint.
        get_rope_index: The stock model's function that counts positions.
    """

    def __init__(self, checkpoint: Checkpoint, get_rope_index: Callable[..., Any]) -> None:
        self.processor = load_processor(checkpoint)
        self.settings = load_clip_settings(checkpoint, self.processor.image_processor)
        # The processor reads a few settings of its video processor when it writes a clip's text.
        self.processor.video_processor = self.settings
        self.placeholder_ids = placeholder_ids(load_config(checkpoint))
        self.get_rope_index = get_rope_index
        self.counts_seconds = checkpoint.model_type == "qwen2_5_vl"
        self.frame_size = FRAME_SIZING[checkpoint.model_type].frame_size
        images = self.processor.image_processor
        self.scale, self.options = split_scale(images)
        frame_options = {name: getattr(self.settings, name) for name in PATCH_SETTINGS}
        self.frame_scale, self.frame_options = split_scale(images, **frame_options)

    def process_image(self, image: Image) -> Pixels:
        """Image -> patches [H * W, E] and their grid [1, 3]."""
        processed = process_image(self.processor, self.placeholder_ids, image, **self.options)
        grids = {"image_grid_thw": processed.tensors["image_grid_thw"]}
        layout = self._layout(processed.text, processed.runs, IMAGE_TYPE, grids, times=(None,))
        patches = processed.tensors["pixel_values"]
        return Pixels({"pixel_values": patches.to(torch.uint8) if self.scale else patches, **grids}, layout, self.scale)

    def process_clip(self, media: Media) -> Pixels:
        """Clip -> patches [T * H * W, E] and their grid [1, 3]; Qwen2.5-VL also takes the seconds of each patch."""
        times, temporal = media.times, self.settings.temporal_patch_size
        patches, grid = self._clip_patches(media.frames)
        grids = {"video_grid_thw": grid}
        if self.counts_seconds:
            interval = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else SINGLE_FRAME_SECONDS
            grids["second_per_grid_ts"] = torch.tensor([temporal * interval])
        # At one frame a second, times in seconds are frame numbers.
        metadata = SimpleNamespace(fps=1.0, frames_indices=list(times))
        written = self.processor.replace_video_token({"video_grid_thw": grid, "video_metadata": [metadata]}, 0)
        token = self.processor.video_token
        run = re.compile(f"(?:{re.escape(token)})+")
        runs = tuple(len(match) // len(token) for match in run.findall(written))
        layout = self._layout(run.sub(token, written), runs, VIDEO_TYPE, grids, times[::temporal])
        return Pixels({"pixel_values_videos": patches, **grids}, layout, self.frame_scale)

    def _clip_patches(self, frames: Sequence[Image]) -> tuple[Tensor, Tensor]:
        """Frames -> patches [T * H * W, E] and their grid [1, 3]. The last frame fills up the last temporal patch."""
        settings, temporal = self.settings, self.settings.temporal_patch_size
        if settings.do_resize:
            height, width = self.frame_size(len(frames), *frames[0].size, settings)
            frames = [frame.resize((width, height), Resampling(settings.resample)) for frame in frames]
        frames = [*frames, *[frames[-1]] * (-len(frames) % temporal)]
        processed = self.processor.image_processor(
            images=frames, return_tensors="pt", do_resize=False, temporal_patch_size=1, **self.frame_options
        )
        (_, rows, columns), channels = processed["image_grid_thw"][0].tolist(), 3
        patches = processed["pixel_values"].to(torch.uint8 if self.frame_scale else torch.float32)
        patches = patches.view(-1, temporal, rows * columns, channels, settings.patch_size**2)
        # Each patch of a frame -> the patches of the frames of a temporal patch, channel by channel.
        joined = patches.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1)
        return joined, torch.tensor([[len(patches), rows, columns]])

    def _layout(
        self,
        text: str,
        runs: tuple[int, ...],
        token_type: int,
        grids: Mapping[str, Tensor],
        times: Sequence[float | None],
    ) -> Layout:
        """Layout of an item: a raster for each time, with the positions that the stock model gives it.

        Args:
            text: As in `Layout`.
            runs: As in `Layout`.
            token_type: IMAGE_TYPE or VIDEO_TYPE.
            grids: Arguments of `get_rope_index`; first the grid of patches [1, 3].
            times: Time of each raster in seconds; None for an image.
        """
        grid = next(iter(grids.values()))
        rows, columns = (side // self.settings.merge_size for side in grid[0, 1:].tolist())
        # Positions of a prompt that has one word before each run, and a last one.
        token_types = torch.tensor([kind for run in runs for kind in (0, *[token_type] * run)] + [0])[None]
        positions = self.get_rope_index(torch.zeros_like(token_types), mm_token_type_ids=token_types, **grids)[0]
        time_axis = positions[0, 0]
        visual_ticks = time_axis[token_types[0] == token_type].tolist()
        word_ticks = time_axis[token_types[0] == 0].tolist()
        run_of_slot = [number for number, run in enumerate(runs) for _ in range(run)]
        regions = []
        for first, time in zip(range(0, sum(runs), rows * columns), times, strict=True):
            tick = visual_ticks[first] - word_ticks[run_of_slot[first]] - 1
            regions.append(Region(first, rows, columns, columns, time=time, tick=tick))
        deltas = tuple(after - before - 1 for before, after in zip(word_ticks, word_ticks[1:], strict=False))
        return Layout(text, runs, tuple(regions), deltas)
