"""Preprocessing of Qwen's models: the frames of an image or clip, and the layout of its tokens in a prompt.

An image is read as a clip of one frame, with the checkpoint's settings for images. Frames are resized here, and cut
into patches on the tower's device: the image processor of transformers does both in fp32, and stores each frame of an
image twice. Its arithmetic on pixels is taken over if that gives the same bits; if not, it runs whole. Positions are
counted by the stock model and stored in the layout as ticks and M-RoPE deltas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_clip

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.shared.pixel_scale import split_scale
from prunesid_cli.models.shared.processor import load_processor, load_video_settings
from prunesid_cli.types import Layout, Patching, Pixels, Region

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
        settings: Settings as `load_clip_settings` returns them.

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


def read_image_settings(image_processor: Any) -> Any:
    """The settings of an image processor, in the form of `load_clip_settings`."""
    shared = {name: getattr(image_processor, name) for name in SHARED_SETTINGS}
    side = image_processor.patch_size * image_processor.merge_size
    return SimpleNamespace(size=image_processor.size, token_side=side, is_capped=False, **shared)


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


class FrameReader:
    """Resizes the frames of images, or of clips, for the tower.

    Args:
        image_processor: The image processor, which gives the arithmetic on pixels.
        settings: Settings as `load_clip_settings` returns them.
        frame_size: See `FrameSizing`.
    """

    def __init__(
        self, image_processor: Any, settings: Any, frame_size: Callable[[int, int, int, Any], tuple[int, int]]
    ):
        self.image_processor, self.settings, self.frame_size = image_processor, settings, frame_size
        patch_options = {name: getattr(settings, name) for name in PATCH_SETTINGS}
        self.scale, self.options = split_scale(image_processor, do_resize=True, **patch_options)
        self.patching = Patching(settings.patch_size, settings.merge_size, settings.temporal_patch_size)

    def read(self, frames: Sequence[Image]) -> tuple[Tensor, Tensor]:
        """Read frames of one size.

        Returns:
            The resized frames [S, H, W, 3] uint8, or patches [P, 3 * E] fp32 if `scale` is None; and the grid of
            patches [1, 3]: of time, rows and columns.

        Raises:
            ValueError: They cannot be cut into patches.
        """
        if self.settings.do_resize:
            height, width = self.frame_size(len(frames), *frames[0].size, self.settings)
            frames = [frame.resize((width, height), Resampling(self.settings.resample)) for frame in frames]
        width, height = frames[0].size
        if width % self.settings.token_side or height % self.settings.token_side:
            raise ValueError(f"a side is no multiple of {self.settings.token_side}")
        side, shared = self.patching.side, self.patching.frames
        grid = torch.tensor([[-(-len(frames) // shared), height // side, width // side]])
        if self.scale:
            return torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])), grid
        frames = [*frames, *[frames[-1]] * (-len(frames) % shared)]
        options = {**self.options, "do_resize": False, "temporal_patch_size": 1}
        processed = self.image_processor(images=frames, return_tensors="pt", **options)
        patches = processed["pixel_values"].view(-1, shared, height * width // side**2, 3, side**2)
        return patches.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1), grid


class QwenPreprocessor:
    """Images and clips -> pixels for the tower, with the layout of their tokens.

    Args:
        checkpoint: The checkpoint.
        get_rope_index: The stock model's function that counts positions.
    """

    def __init__(self, checkpoint: Checkpoint, get_rope_index: Callable[..., Any]) -> None:
        self.processor = load_processor(checkpoint)
        images = self.processor.image_processor
        self.settings = load_clip_settings(checkpoint, images)
        # The processor reads a few settings of its video processor when it writes a clip's text.
        self.processor.video_processor = self.settings
        self.get_rope_index = get_rope_index
        self.counts_seconds = checkpoint.model_type == "qwen2_5_vl"
        self.images = FrameReader(images, read_image_settings(images), frame_size_per_frame)
        self.clips = FrameReader(images, self.settings, FRAME_SIZING[checkpoint.model_type].frame_size)

    def process_image(self, image: Image) -> Pixels:
        """Image -> pixels and their grid [1, 3]."""
        frames, grid = self.images.read([image])
        grids = {"image_grid_thw": grid}
        written = self.processor.replace_image_token(grids, 0)
        layout = self._layout(written, self.processor.image_token, IMAGE_TYPE, grids, times=(None,))
        return self._pixels({"pixel_values": frames, **grids}, layout, self.images)

    def process_clip(self, media: Media) -> Pixels:
        """Clip -> pixels and their grid [1, 3]; Qwen2.5-VL also takes the seconds of each patch."""
        times, temporal = media.times, self.settings.temporal_patch_size
        frames, grid = self.clips.read(media.frames)
        grids = {"video_grid_thw": grid}
        if self.counts_seconds:
            interval = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else SINGLE_FRAME_SECONDS
            grids["second_per_grid_ts"] = torch.tensor([temporal * interval])
        # At one frame a second, times in seconds are frame numbers.
        metadata = SimpleNamespace(fps=1.0, frames_indices=list(times))
        written = self.processor.replace_video_token({"video_grid_thw": grid, "video_metadata": [metadata]}, 0)
        layout = self._layout(written, self.processor.video_token, VIDEO_TYPE, grids, times[::temporal])
        return self._pixels({"pixel_values_videos": frames, **grids}, layout, self.clips)

    @staticmethod
    def _pixels(tensors: Mapping[str, Tensor], layout: Layout, reader: FrameReader) -> Pixels:
        return Pixels(tensors, layout, reader.scale, reader.patching if reader.scale else None)

    def _layout(
        self,
        written: str,
        token: str,
        token_type: int,
        grids: Mapping[str, Tensor],
        times: Sequence[float | None],
    ) -> Layout:
        """Layout of an item: a raster for each time, with the positions that the stock model gives it.

        Args:
            written: The item as the processor writes it into a prompt.
            token: The placeholder of a visual token in it.
            token_type: IMAGE_TYPE or VIDEO_TYPE.
            grids: Arguments of `get_rope_index`; first the grid of patches [1, 3].
            times: Time of each raster in seconds; None for an image.
        """
        run_of_tokens = re.compile(f"(?:{re.escape(token)})+")
        text = run_of_tokens.sub(token, written)
        runs = tuple(len(run) // len(token) for run in run_of_tokens.findall(written))
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
