"""What is in a video file, by its packets alone: `survey` reads them all and decodes none."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.video.truncation import is_cut_short

MAX_PACKETS = 6_000_000
MAX_HOURS = 24
MAX_PIXELS = 100_000_000
AGAIN = "copy or download it again"
# Demuxers that read one file and nothing else. A playlist would make FFmpeg open what it names.
FORMATS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "asf", "mpegts", "mpeg", "mpegvideo",
    "ogg", "mxf",
)  # fmt: skip
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": ""}
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Of decoders: an error is raised, and not painted over."""


@dataclass(frozen=True)
class Survey:
    """What a file holds.

    stamps     of the frames that are shown, rising, in units of `unit` seconds; empty where packets have none
    keys       of the keyframes, rising
    oddities   why a decoder that numbers frames may take one for another
    """

    format: str
    codec: str
    size: tuple[int, int]
    unit: Fraction
    stamps: tuple[int, ...]
    keys: tuple[int, ...]
    oddities: tuple[str, ...]

    @property
    def times(self) -> list[float]:
        """In seconds from the first frame."""
        return [float((stamp - self.stamps[0]) * self.unit) for stamp in self.stamps]


def opened(file: Any) -> tuple[Any, Any]:
    """An open file -> container and the stream of pictures."""
    file.seek(0)
    container = av.open(file, container_options=OPTIONS)
    pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not pictures:
        raise MediaError("there are no moving pictures in it", "name a video, or an image")
    if pictures[0].codec_context is None:
        raise MediaError("its codec is not known", "convert it to MP4")
    pictures[0].codec_context.options = STRICT
    return container, pictures[0]


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def survey(file: Any, size: int) -> Survey:
    """Read all packets of an open file of `size` bytes, and decode none.

    Raises:
        MediaError: it is cut short, too long or too large, or there is nothing to see in it; its text names no source.
    """
    if is_cut_short(file, size):
        raise MediaError("cut short: its end is missing", AGAIN)
    container, stream = opened(file)
    with container:
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            problem = f"{width} x {height} pixels a frame, more than the limit of {MAX_PIXELS // 10**6} megapixels"
            raise MediaError(problem, "make the clip smaller")
        alone = sum(not _is_cover(other) for other in container.streams.video) == 1
        stamps, keys, oddities = _read(container, stream)
        if not alone:
            oddities = (*oddities, "several video streams")
        found = Survey(
            container.format.name, stream.codec_context.name, (width, height), stream.time_base or Fraction(1, 1000),
            stamps, keys, oddities,
        )  # fmt: skip
    if stamps and (stamps[-1] - stamps[0]) * found.unit > MAX_HOURS * 3600:
        raise MediaError(f"longer than the limit of {MAX_HOURS} hours", "cut it into parts")
    return found


def _read(container: Any, stream: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Stamps, keys and oddities. Nothing before the first keyframe can be decoded, so nothing of it counts."""
    guesses = container.format.name == "avi"  # which stores one time a frame, and not the one that it is shown at
    stamps, keys, odd = list[int](), list[int](), dict[str, None]()
    key, read, last = None, 0, None
    for packet in container.demux(stream):
        if packet.size == 0:  # the end
            continue
        read += 1
        if read > MAX_PACKETS:
            raise MediaError(f"more than the limit of {MAX_PACKETS:,} frames", "cut it into parts")
        if packet.pts is None:
            return (), (), ("frames without times",)
        if last is not None and packet.dts is not None and packet.dts < last:
            return (), (), ("times that go back",)
        last = packet.dts
        if guesses and stamps and packet.pts < stamps[-1]:
            return (), (), ("times that were guessed",)
        if packet.is_keyframe:
            key = packet.pts
            keys.append(key)
        if key is None:
            odd["no keyframe first"] = None
            continue
        if packet.pts < key:
            odd["frames that precede their keyframe"] = None
        if packet.is_discard:
            odd["an edit list"] = None
        elif packet.pts >= keys[0]:
            stamps.append(packet.pts)
    if not stamps:
        raise MediaError("there is no whole picture in it", AGAIN)
    return tuple(sorted(set(stamps))), tuple(sorted(keys)), tuple(odd)
