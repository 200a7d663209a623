"""What a video file holds, by its packets alone: `probe_clip` reads all of them and decodes none."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.video.truncation import is_truncated

MAX_PACKETS = 6_000_000
MAX_HOURS = 24
MAX_PIXELS = 100_000_000
"""Maximum number of pixels of a frame."""
COPY_HINT = "copy or download it again"
# Demuxers that read one file and nothing else. A playlist would make FFmpeg open the files that it names.
DEMUXERS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "asf", "mpegts", "mpeg", "mpegvideo",
    "ogg", "mxf",
)  # fmt: skip
CONTAINER_OPTIONS = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": ""}
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""FFmpeg's number of a transfer characteristic (AVColorTransferCharacteristic) -> its name, for those of HDR."""
MAX_SQUARE_DEVIATION = 0.01
"""Deviation from 1 up to which the ratio of a pixel's sides counts as 1: some encoders round it."""
STRICT_DECODING = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Decoder options that raise an error for damage, which decoders otherwise conceal."""


@dataclass(frozen=True)
class ClipProbe:
    """What a video file holds.

    Attributes:
        format: FFmpeg's names of the container, separated by commas.
        codec: FFmpeg's name of the codec.
        size: Width and height of a frame in pixels, as stored.
        time_base: Unit of all timestamps, in seconds.
        timestamps: Presentation timestamps of the frames that are shown, increasing; empty if packets have none.
        keyframes: Presentation timestamps of the keyframes, increasing.
        irregularities: Why a decoder that numbers frames may take one for another.
        may_be_transparent: Whether frames may have an alpha channel.
        notes: What the user might not expect of the frames.
    """

    format: str
    codec: str
    size: tuple[int, int]
    time_base: Fraction
    timestamps: tuple[int, ...]
    keyframes: tuple[int, ...]
    irregularities: tuple[str, ...]
    may_be_transparent: bool
    notes: tuple[str, ...]

    @property
    def times(self) -> list[float]:
        """Seconds from the first frame, one for each frame."""
        return [float((timestamp - self.timestamps[0]) * self.time_base) for timestamp in self.timestamps]


def open_video(file: Any) -> tuple[Any, Any]:
    """Open the container and, of its streams of moving pictures, the one that FFmpeg considers the best.

    Raises:
        MediaError: There is none, or its codec is unknown. The message does not name the file.
    """
    file.seek(0)
    container = av.open(file, container_options=CONTAINER_OPTIONS)
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        raise MediaError("there are no moving pictures in it", "name a video, or an image")
    known, best = [stream for stream in streams if stream.codec_context], container.streams.best("video")
    if not known:
        raise MediaError("its codec is not known", "convert it to MP4")
    stream = best if best in known else known[0]
    stream.codec_context.options = STRICT_DECODING
    return container, stream


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def probe_clip(file: Any, size: int) -> ClipProbe:
    """Read all packets of a video file, and decode none.

    Args:
        file: The open file.
        size: Its size in bytes.

    Raises:
        MediaError: It is truncated, too long or too large, or shows nothing. The message does not name the file.
    """
    if is_truncated(file, size):
        raise MediaError("cut short: its end is missing", COPY_HINT)
    container, stream = open_video(file)
    with container:
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            problem = f"{width} x {height} pixels a frame, more than the limit of {MAX_PIXELS // 10**6} megapixels"
            raise MediaError(problem, "make the clip smaller")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        notes, pixel_format = _describe_pixels(stream), stream.codec_context.format
        timestamps, keyframes, irregularities = _read_packets(container, stream)
        if len(streams) > 1:
            irregularities = (*irregularities, "several video streams")
            chosen = f"number {streams.index(stream) + 1}, of {width}x{height}, is used"
            notes = (f"{len(streams)} video streams: {chosen}", *notes)
        probe = ClipProbe(
            format=container.format.name,
            codec=stream.codec_context.name,
            size=(width, height),
            time_base=stream.time_base or Fraction(1, 1000),
            timestamps=timestamps,
            keyframes=keyframes,
            irregularities=irregularities,
            may_be_transparent=has_separate_alpha(stream) or (pixel_format is not None and has_alpha(pixel_format)),
            notes=notes,
        )
    if timestamps and (timestamps[-1] - timestamps[0]) * probe.time_base > MAX_HOURS * 3600:
        raise MediaError(f"longer than the limit of {MAX_HOURS} hours", "cut it into parts")
    return probe


def has_separate_alpha(stream: Any) -> bool:
    """Whether a stream of VP8 or VP9 has an alpha channel, which is beside the pictures."""
    return any(name.lower() == "alpha_mode" and value == "1" for name, value in stream.metadata.items())


def has_alpha(pixel_format: Any) -> bool:
    """Whether a pixel format has an alpha channel; a palette may have one."""
    return bool(pixel_format.has_palette or any(part.is_alpha for part in pixel_format.components))


def _describe_pixels(stream: Any) -> tuple[str, ...]:
    """Notes on pixels that are not square, and on colours of HDR."""
    notes, context = list[str](), stream.codec_context
    ratio = stream.sample_aspect_ratio or 1
    if abs(ratio - 1) > MAX_SQUARE_DEVIATION:
        shown = f"{round(context.width * ratio)}x{context.height}"
        notes.append(f"anamorphic: {context.width}x{context.height} is used as stored, players show {shown}")
    if transfer := HDR_TRANSFERS.get(context.color_trc):
        notes.append(f"HDR ({transfer}): colours are used without tone mapping")
    return tuple(notes)


def _read_packets(container: Any, stream: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Timestamps, keyframes, irregularities. Frames before the first keyframe cannot be decoded, so they are left out.

    Timestamps and keyframes are empty if the timestamps of the packets cannot be trusted.
    """
    is_avi = container.format.name == "avi"  # it stores one time per frame, and not that at which the frame is shown
    timestamps, keyframes, irregularities = list[int](), list[int](), dict[str, None]()
    keyframe, num_packets, last_dts = None, 0, None
    for packet in container.demux(stream):
        if packet.size == 0:  # the end
            continue
        num_packets += 1
        if num_packets > MAX_PACKETS:
            raise MediaError(f"more than the limit of {MAX_PACKETS:,} frames", "cut it into parts")
        if packet.pts is None:
            return (), (), ("frames without times",)
        if last_dts is not None and packet.dts is not None and packet.dts < last_dts:
            return (), (), ("times that go back",)
        last_dts = packet.dts
        if is_avi and timestamps and packet.pts < timestamps[-1]:
            return (), (), ("times that were guessed",)
        if packet.is_keyframe:
            keyframe = packet.pts
            keyframes.append(keyframe)
        if keyframe is None:
            irregularities["no keyframe first"] = None
            continue
        if packet.pts < keyframe:
            irregularities["frames that precede their keyframe"] = None
        if packet.is_discard:
            irregularities["an edit list"] = None
        elif packet.pts >= keyframes[0]:
            timestamps.append(packet.pts)
    if not timestamps:
        raise MediaError("there is no whole picture in it", COPY_HINT)
    return tuple(sorted(set(timestamps))), tuple(sorted(keyframes)), tuple(irregularities)
