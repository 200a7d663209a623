"""The frames of a clip through PyAV, by time.

`frames_by_seeking` decodes from the keyframe before each frame that is wanted. Where that gives another frame than was
meant (some containers seek badly), or where packets have no times, `frames_from_start` decodes everything in order.
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
from prunesid_cli.inputs.video.probe import AGAIN, Survey, opened

SKIPPING = frozenset({"h264", "hevc"})
"""Decoders that can be told at each packet whether to pass over a frame that no other one needs."""


class Misplaced(Exception):
    """A seek led to another frame than was meant."""


@dataclass(frozen=True)
class Shown:
    """A decoded frame, upright, and its place in time."""

    stamp: int
    image: Image.Image


def version() -> str:
    return f"PyAV {av.__version__}"


def frames_by_seeking(file: Any, found: Survey, wanted: Sequence[int], factor: int) -> Iterator[Shown]:
    """The frames with these stamps, each reduced in size by `factor`, as they are decoded.

    Raises:
        Misplaced: one of them is not where the container says.
    """
    container, stream = opened(file)
    with container:
        for key, group in _by_key(found.keys, wanted):
            container.seek(key, stream=stream)
            meant, before = set(group), None
            for frame in _decoding(container, stream, group):
                if frame.pts is None or frame.is_corrupt or before is not None and frame.pts < before:
                    raise Misplaced
                before = frame.pts
                if frame.pts in meant:
                    yield Shown(frame.pts, upright(frame, factor))
                    meant.remove(frame.pts)
                if not meant or frame.pts > group[-1]:
                    break
            if meant:
                raise Misplaced


def _decoding(container: Any, stream: Any, wanted: Sequence[int]) -> Iterator[Any]:
    """Frames from here on; those that are neither wanted nor needed by others may be missing."""
    context, meant = stream.codec_context, set(wanted)
    can_skip = context.name in SKIPPING
    for packet in container.demux(stream):
        if can_skip:
            context.skip_frame = "NONREF" if packet.size and packet.pts not in meant else "DEFAULT"
        yield from packet.decode()


def _by_key(keys: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The stamps that are decoded from each keyframe."""
    groups: dict[int, list[int]] = {}
    for stamp in wanted:
        groups.setdefault(keys[max(bisect_right(keys, stamp) - 1, 0)], []).append(stamp)
    yield from groups.items()


def counted(file: Any, found: Survey) -> Survey:
    """The same with stamps by decoding all of it, where packets do not tell.

    Raises:
        MediaError: a frame is damaged, or there is none; its text names no source.
    """
    container, stream = opened(file)
    with container:
        raw = [(_sound(frame).pts, frame.duration) for frame in container.decode(stream)]
    if not raw:
        raise MediaError("there is no picture in it that can be decoded", AGAIN)
    stamps = [stamp for stamp, _ in raw if stamp is not None]
    # Decoders give frames in the order in which they are shown, though their times may be in another.
    stamps = sorted(stamps) if len(set(stamps)) == len(raw) else _rising(raw)
    return replace(found, stamps=tuple(stamps), keys=())


def _rising(raw: Iterable[tuple[int | None, int | None]]) -> list[int]:
    """Stamps, durations -> stamps; of one that is none or an earlier one, the last and how long that is shown."""
    stamps, step = list[int](), 1
    for stamp, duration in raw:
        step = duration or step
        last = stamps[-1] if stamps else -step
        stamps.append(last + step if stamp is None or stamps and stamp <= last else stamp)
    return stamps


def frames_from_start(file: Any, found: Survey, wanted: Sequence[int], factor: int) -> Iterator[Shown]:
    """The frames with these stamps, of a file that was `counted`, by decoding everything up to the last."""
    container, stream = opened(file)
    left = set(wanted)
    with container:
        for stamp, frame in zip(found.stamps, container.decode(stream), strict=False):
            if stamp in left:
                yield Shown(stamp, upright(_sound(frame), factor))
                left.remove(stamp)
            if not left:
                break


def is_on_its_side(file: Any) -> bool:
    """Whether pictures are stored a quarter turn from how they are shown, by the first one."""
    container, stream = opened(file)
    with container:
        return any(round(frame.rotation / 90) % 2 for frame in islice(container.decode(stream), 1))


def _sound(frame: Any) -> Any:
    if frame.is_corrupt:
        raise MediaError(f"damaged: the picture at {frame.time or 0:.2f} s cannot be decoded", AGAIN)
    return frame


def upright(frame: Any, factor: int) -> Image.Image:
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    image = Image.fromarray(np.ascontiguousarray(turned))
    return image.reduce(factor) if factor > 1 else image
