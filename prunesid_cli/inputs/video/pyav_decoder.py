"""Decodes the frames of a clip with PyAV, by their timestamps.

`decode_by_seeking` decodes from the keyframe before each wanted frame. If that leads to another frame than the wanted
one (some containers seek badly), or if packets have no timestamps, `decode_from_start` decodes everything in order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import av
import numpy as np
from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.color_mode import to_rgb
from prunesid_cli.inputs.video.probe import COPY_HINT, ClipProbe, has_alpha, has_separate_alpha, open_video

SKIP_FRAME_CODECS = frozenset({"h264", "hevc"})
"""Codecs whose decoder can be told, packet by packet, to skip a frame that no other frame needs."""

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codec -> the decoder that reads its alpha channel. FFmpeg's own decoders leave it out."""


class SeekError(Exception):
    """Seeking led to another frame than the wanted one."""


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame.

    Attributes:
        timestamp: Presentation timestamp, in units of the clip's time base.
        image: RGB, upright.
        note: What was done to the picture that the user might not expect; may be empty.
    """

    timestamp: int
    image: Image.Image
    note: str = ""


def pyav_version() -> str:
    """Name and version of the decoder."""
    return f"PyAV {av.__version__}"


def decode_by_seeking(file: Any, probe: ClipProbe, timestamps: Sequence[int], factor: int) -> Iterator[DecodedFrame]:
    """Decode the frames with these timestamps, from the keyframe before each of them.

    Args:
        file: The open file.
        probe: What the file holds, with keyframes.
        timestamps: Of the wanted frames, increasing.
        factor: By which the sides of each frame are reduced.

    Raises:
        SeekError: A frame is not where the container says.
    """
    by_keyframe: dict[int, list[int]] = {}
    for timestamp in timestamps:
        keyframe = probe.keyframes[max(bisect_right(probe.keyframes, timestamp) - 1, 0)]
        by_keyframe.setdefault(keyframe, []).append(timestamp)
    container, stream = open_video(file)
    with container:
        for keyframe, group in by_keyframe.items():
            container.seek(keyframe, stream=stream)
            missing, last = set(group), None
            for frame in _decode_stream(container, stream, frozenset(group)):
                if frame.pts is None or frame.is_corrupt or last is not None and frame.pts < last:
                    raise SeekError
                last = frame.pts
                if frame.pts in missing:
                    yield _make_frame(frame.pts, frame, probe, factor)
                    missing.remove(frame.pts)
                if not missing or frame.pts > group[-1]:
                    break
            if missing:
                raise SeekError


def _decode_stream(container: Any, stream: Any, timestamps: frozenset[int] | None = None) -> Iterator[Any]:
    """The frames from here on. With `timestamps`, those that neither are wanted nor needed may be left out."""
    context = stream.codec_context
    if has_separate_alpha(stream) and context.name in ALPHA_DECODERS:
        context = av.CodecContext.create(ALPHA_DECODERS[context.name], "r")
    for packet in container.demux(stream):
        if timestamps is not None and context.name in SKIP_FRAME_CODECS:
            context.skip_frame = "NONREF" if packet.size and packet.pts not in timestamps else "DEFAULT"
        yield from context.decode(packet)


def probe_by_decoding(file: Any, probe: ClipProbe) -> ClipProbe:
    """Replace the timestamps of a probe by those of the decoded frames, if packets do not have them.

    Raises:
        MediaError: A frame is damaged, or there is none. The message does not name the file.
    """
    container, stream = open_video(file)
    with container:
        frames = list[tuple[int | None, int | None]]()
        for frame in _decode_stream(container, stream):
            _check_intact(frame)
            frames.append((frame.pts, frame.duration))
    if not frames:
        raise MediaError("there is no picture in it that can be decoded", COPY_HINT)
    # Decoders give frames in the order in which they are shown, though their timestamps may be in another order.
    timestamps = sorted(timestamp for timestamp, _ in frames if timestamp is not None)
    if len(set(timestamps)) < len(frames):
        timestamps = _make_increasing(frames)
    return replace(probe, timestamps=tuple(timestamps), keyframes=())


def _make_increasing(frames: Iterable[tuple[int | None, int | None]]) -> list[int]:
    """Timestamps and durations -> timestamps. A missing or earlier timestamp becomes the last one plus its duration."""
    timestamps, step = list[int](), 1
    for timestamp, duration in frames:
        step = duration or step
        last = timestamps[-1] if timestamps else -step
        if timestamp is None or timestamps and timestamp <= last:
            timestamp = last + step
        timestamps.append(timestamp)
    return timestamps


def decode_from_start(file: Any, probe: ClipProbe, timestamps: Sequence[int], factor: int) -> Iterator[DecodedFrame]:
    """Decode the frames with these timestamps by decoding everything up to the last of them.

    Args:
        file: The open file.
        probe: Result of `probe_by_decoding`.
        timestamps: Of the wanted frames.
        factor: By which the sides of each frame are reduced.

    Raises:
        MediaError: A wanted frame is damaged. The message does not name the file.
    """
    container, stream = open_video(file)
    missing = set(timestamps)
    with container:
        for timestamp, frame in zip(probe.timestamps, _decode_stream(container, stream), strict=False):
            if timestamp in missing:
                _check_intact(frame)
                yield _make_frame(timestamp, frame, probe, factor)
                missing.remove(timestamp)
            if not missing:
                break


def is_stored_sideways(file: Any) -> bool:
    """Whether the first frame is stored a quarter turn from how it is shown."""
    container, stream = open_video(file)
    with container:
        return any(round(frame.rotation / 90) % 2 for frame in islice(container.decode(stream), 1))


def _check_intact(frame: Any) -> None:
    if frame.is_corrupt:
        raise MediaError(f"damaged: the picture at {frame.time or 0:.2f} s cannot be decoded", COPY_HINT)


def _make_frame(timestamp: int, frame: Any, probe: ClipProbe, factor: int) -> DecodedFrame:
    """RGB, upright, and reduced by a factor; transparency is composited on white, as that of images."""
    pixels, note = frame.to_ndarray(format="rgb24"), ""
    if has_alpha(frame.format):
        alpha = frame.to_ndarray(format="rgba")[..., 3:]
        if alpha.any() or probe.format != "avi":  # in AVI, the fourth byte of a pixel is often not used
            image, note = to_rgb(Image.fromarray(np.concatenate([pixels, alpha], -1)))
            pixels = np.asarray(image)
    image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))))
    return DecodedFrame(timestamp, image.reduce(factor) if factor > 1 else image, note)
