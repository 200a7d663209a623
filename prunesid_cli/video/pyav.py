"""Clips through PyAV: what is in a file, and its frames by time.

`survey` reads all packets and decodes none. From it the frames to look at are chosen and `frames_by_seeking` decodes
from the keyframe before each. Where that gives another frame than was meant (some containers seek badly), or where
packets have no times, `frames_from_start` decodes everything in order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.video.whole import is_cut_short

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
MISSING = 2
"""Packets that may have no picture of their own, in a row: second fields, and frames that only others refer to."""


class Misplaced(Exception):
    """A seek led to another frame than was meant."""


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


@dataclass(frozen=True)
class Shown:
    """A decoded frame, upright, and its place in time."""

    stamp: int
    image: Image.Image


def version() -> str:
    return f"PyAV {av.__version__}"


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


def frames_by_seeking(file: Any, found: Survey, wanted: Sequence[int], factor: int) -> list[Shown]:
    """The frames with these stamps, each reduced in size by `factor`.

    Raises:
        Misplaced: one of them is not where the container says.
    """
    container, stream = opened(file)
    shown = list[Shown]()
    with container:
        for key, group in _by_key(found.keys, wanted):
            container.seek(key, stream=stream)
            meant = set(group)
            for frame in container.decode(stream):
                if frame.pts is None or frame.is_corrupt:
                    raise Misplaced
                if frame.pts in meant:
                    shown.append(Shown(frame.pts, upright(frame, factor)))
                    meant.remove(frame.pts)
                if not meant or frame.pts > group[-1]:
                    break
            if meant:
                raise Misplaced
    return shown


def _by_key(keys: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The stamps that are decoded from each keyframe."""
    groups: dict[int, list[int]] = {}
    for stamp in wanted:
        groups.setdefault(keys[max(bisect_right(keys, stamp) - 1, 0)], []).append(stamp)
    yield from groups.items()


def stamps_from_start(file: Any) -> list[int]:
    """Of all frames that can be decoded, where packets do not tell."""
    container, stream = opened(file)
    with container:
        return [stamp for stamp, _ in _stamped(container.decode(stream))]


def counted(file: Any, found: Survey) -> Survey:
    """The same with stamps by decoding all of it."""
    stamps = tuple(stamps_from_start(file))
    if not stamps:
        raise MediaError("there is no picture in it that can be decoded", AGAIN)
    return Survey(found.format, found.codec, found.size, found.unit, stamps, (), found.oddities)


def frames_from_start(file: Any, found: Survey, wanted: Sequence[int], factor: int) -> list[Shown]:
    """What is on screen at these stamps, by decoding everything up to the last.

    Raises:
        MediaError: a part of the file cannot be decoded; its text names no source.
    """
    container, stream = opened(file)
    shown, waiting, last = list[Shown](), list(wanted), None
    with container:
        for stamp, frame in _stamped(container.decode(stream)):
            while waiting and last and stamp > waiting[0]:
                shown.append(_checked(found, waiting.pop(0), *last, factor))
            if not waiting:
                break
            last = stamp, frame
        for stamp in waiting:
            if last is None:
                raise _undecodable(found, stamp)
            shown.append(_checked(found, stamp, *last, factor))
    return list({one.stamp: one for one in shown}.values())


def _stamped(frames: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """With rising stamps; of one that has none, or an earlier one, it is that of the frame before and a little more."""
    last, step = None, 1
    for frame in frames:
        step = frame.duration or step
        stamp = frame.pts
        if stamp is None or last is not None and stamp <= last:
            stamp = 0 if last is None else last + step
        last = stamp
        yield stamp, frame


def _checked(found: Survey, wanted: int, stamp: int, frame: Any, factor: int) -> Shown:
    """A frame, if it is what should be on screen at the stamp that is wanted."""
    missing = bisect_right(found.stamps, wanted) - bisect_right(found.stamps, stamp)
    if frame.is_corrupt or missing > MISSING or stamp > wanted and bisect_left(found.stamps, stamp) > MISSING:
        raise _undecodable(found, wanted)
    return Shown(stamp, upright(frame, factor))


def _undecodable(found: Survey, stamp: int) -> MediaError:
    seconds = float((stamp - found.stamps[0]) * found.unit)
    return MediaError(f"damaged: the picture at {seconds:.2f} s cannot be decoded", AGAIN)


def upright(frame: Any, factor: int) -> Image.Image:
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    image = Image.fromarray(np.ascontiguousarray(turned))
    return image.reduce(factor) if factor > 1 else image
