"""How types of the generic adapter read clips: one class for each way, which makes pixels and a layout of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from math import isqrt
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoVideoProcessor
from transformers.video_utils import VideoMetadata

from prunesid_cli.errors import ModelError
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint, loading_error
from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor
from prunesid_cli.models.shared.mrope import with_mrope
from prunesid_cli.models.shared.processor import (
    collapse_placeholders,
    collapse_text,
    load_video_settings,
    modality_ids,
    placeholder_text,
    read_frame_options,
)
from prunesid_cli.models.shared.token_grid import frame_regions
from prunesid_cli.models.spliced.layouts import stack, whole_and_tile_boxes
from prunesid_cli.models.spliced.processor import SplicedProcessor
from prunesid_cli.types import WHOLE_IMAGE, Box, Layout, Pixels, Region

TILING_SETTINGS = ("crop_to_patches", "do_image_splitting")
"""Settings by which image processors cut an image into tiles, which are not made of frames."""


class FrameClips:
    """Frames as images of one size, without tiles, each with a text of its own (InternVL, SmolVLM).

    Args:
        checkpoint: Where the settings for video are.
        images: The checkpoint's processor of images, which frames go through.
        model: The stock model.
    """

    needs = ""

    def __init__(self, checkpoint: Checkpoint, images: SplicedProcessor, model: Any) -> None:
        self.images, image_processor = images, images.processor.image_processor
        options: dict[str, Any] = {name: False for name in TILING_SETTINGS if hasattr(image_processor, name)}
        # The size of frames can also be in `video_sampling`, where it only counts if there is no other.
        sampling = load_video_settings(checkpoint).get("video_sampling") or {}
        if "video_size" in sampling:
            options["size"] = sampling["video_size"]
        options |= read_frame_options(checkpoint, image_processor)
        self.preprocessor = FramePreprocessor(image_processor, **options)

    def process(self, media: Media) -> Pixels:
        """Clip -> frames [S, 3, H, W]."""
        pixels, scale = self.preprocessor(media.frames), self.preprocessor.scale
        metadata = SimpleNamespace(fps=1.0, timestamps=media.times, duration=None)
        clip = {"pixel_values": pixels[None], "pixel_values_videos": pixels[None], "video_metadata": [metadata]}
        written = self.images.processor.replace_video_token(clip, 0)
        text, runs = collapse_text(self.images.processor, frozenset({self.images.image_id}), written)
        return Pixels({"pixel_values": pixels}, Layout(text, runs, frame_regions(runs[0], media.times)), scale)


class VideoProcessorClips:
    """Clips through the checkpoint's own video processor, which needs torchvision.

    Args: As of `FrameClips`.
    """

    needs = "torchvision"

    def __init__(self, checkpoint: Checkpoint, images: SplicedProcessor, model: Any) -> None:
        self.processor = images.processor
        try:
            self.processor.video_processor = AutoVideoProcessor.from_pretrained(
                checkpoint.location, revision=checkpoint.commit
            )
        except (OSError, ValueError) as error:
            raise loading_error(checkpoint, f"cannot load the video processor of {checkpoint.name}", error) from error
        self.places_text = images.row.places_text
        self.num_joined = getattr(self.processor.video_processor, "temporal_patch_size", 1)
        self.ids = modality_ids(model.config)
        self.arguments = signature(model.base_model.get_video_features).parameters
        self.get_rope_index = getattr(model.base_model, "get_rope_index", None)

    def process(self, media: Media) -> Pixels:
        """Clip -> the arguments of the stock model's `get_video_features`."""
        frames, times = list(media.frames), list(media.times)
        if len(frames) == 1 and self.num_joined == 2:  # GLM joins pairs of frames, and refuses a single frame
            frames, times = 2 * frames, 2 * times
        # At one frame a second, times in seconds are frame numbers.
        metadata = VideoMetadata(total_num_frames=len(frames), fps=1.0, frames_indices=times)
        processed = self.processor(
            text=[placeholder_text(self.processor, True)],
            videos=[frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            # MiniMax's processor expects frames that were resized.
            do_resize=self.processor.video_processor.do_resize,
            return_metadata=True,
            return_tensors="pt",
            add_special_tokens=False,
        )
        token_ids = processed["input_ids"][0].tolist()
        text, runs = collapse_placeholders(self.processor.tokenizer, token_ids, frozenset(self.ids.values()))
        tensors = {name: torch.as_tensor(processed[name]) for name in self.arguments if name in processed}
        layout = Layout(text, runs, self.regions(processed, media.times, text, sum(runs)))
        if layout.num_visual != layout.total:
            problem = f"the grids of {media.source or 'a clip'} cover {layout.num_visual} of its {layout.total} tokens"
            raise ModelError(problem, "report it, with the type of the model")
        if self.places_text:
            layout = replace(layout, mrope_deltas=runs)
        elif self.get_rope_index:
            layout = with_mrope(layout, 2, self.ids["video"], self.get_rope_index, tensors)
        return Pixels(tensors, layout)

    def regions(self, processed: Any, times: Sequence[float], text: str, total: int) -> tuple[Region, ...]:
        """The grids of tokens of a clip.

        Args:
            processed: What the processor returned for it.
            times: Time of each frame in seconds.
            text: Its text in a prompt.
            total: Number of its visual tokens.
        """
        if "target_sizes_videos" in processed:
            shapes, boxes, part_times = processed["target_sizes_videos"].tolist(), list[Box](), list[float]()
            # MiniCPM-V: each whole frame is followed by its slices. The text has a line for each row of slices.
            _, *frames = text.split(self.processor.image_start_token)
            for time, frame in zip(times, frames, strict=True):
                parts = whole_and_tile_boxes(1 + frame.count(self.processor.slice_start_token), frame.count("\n") + 1)
                boxes += parts
                part_times += [time] * len(parts)
        else:
            part_times = list(times[:: self.num_joined])
            if "video_grid_thw" in processed:
                shape = processed["video_grid_thw"][0, 1:].tolist()
            else:
                shape = (processed["video_position_ids"].flatten(0, -3)[0].amax(0) + 1).tolist()[::-1]
            shapes, boxes = [shape] * len(part_times), [WHOLE_IMAGE] * len(part_times)
        merge = isqrt(sum(rows * columns for rows, columns in shapes) // total)
        regions = stack([(rows // merge, columns // merge) for rows, columns in shapes], boxes)
        return tuple(replace(region, time=time) for region, time in zip(regions, part_times, strict=True))


READERS: dict[str, type[FrameClips] | type[VideoProcessorClips]] = {
    "frames": FrameClips,
    "video_processor": VideoProcessorClips,
}
"""Way of reading clips -> its class. `needs` is a package that it needs besides those of prunesid."""
