"""The frames of a clip through PyAV, by time.

`frames_by_seeking` decodes from the keyframe before each frame that is wanted. Where that gives another frame than was
meant (some containers seek badly), or where packets have no times, `frames_from_start` decodes everything in order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.video.survey import AGAIN, Survey, opened

MISSING = 2
"""Packets that may have no picture of their own, in a row: second fields, and frames that only others refer to."""


class Misplaced(Exception):
    """A seek led to another frame than was meant."""


@dataclass(frozen=True)
class Shown:
    """A decoded frame, upright, and its place in time."""

    stamp: int
    image: Image.Image


def version() -> str:
    return f"PyAV {av.__version__}"


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
    return replace(found, stamps=stamps, keys=())


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
