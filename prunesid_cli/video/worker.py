"""The process that decodes one clip: whatever its decoder does, hang or crash, ends with it.

It is called with a path and a sampling as JSON, and writes to stdout one line of JSON, `Told` or {"error", "hint"},
and then the frames, RGB, one after the other.

"auto" is PyAV: it is as fast as decord, reads more formats, and tells of most damage, which decord paints over. (In
VP8, VP9 and HEVC a flipped bit mostly decodes to something, and nobody can tell.)

decord decodes on request, and only where it can be trusted: it numbers frames, and is silently wrong where numbers and
times part ways (`Survey.oddities`), and with other codecs and containers than those named here.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from threading import Thread
from typing import Any, BinaryIO

from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.video import pyav
from prunesid_cli.video.pyav import Misplaced, Shown
from prunesid_cli.video.sampling import Sampling
from prunesid_cli.video.survey import AGAIN, Survey, survey

MOST_PIXELS = 128_000_000
"""Of all frames of a clip together, about 400 MB. Larger ones are reduced in size."""
CONTAINERS = frozenset({"mp4", "mov", "matroska", "webm"})
CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
NEAR = 0.002
"""Seconds that two decoders may differ about the time of a frame."""


@dataclass(frozen=True)
class Told:
    """What is said of a clip before its frames; size: of each."""

    size: tuple[int, int]
    times: tuple[float, ...]
    decoder: str
    notes: tuple[str, ...]


def main() -> None:
    path, sampling = sys.argv[1], Sampling(**json.loads(sys.argv[2]))
    Thread(target=_end_with_stdin, daemon=True).start()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what decoders print is no frame
    try:
        told, frames = read(path, sampling)
    except MediaError as error:
        out.write(json.dumps({"error": error.problem, "hint": error.hint}).encode() + b"\n")
    else:
        out.write(json.dumps(asdict(told)).encode() + b"\n")
        for frame in frames:
            out.write(frame.tobytes())
    out.flush()
    os._exit(0)  # decord may wait for its threads for ever


def _end_with_stdin() -> None:
    """Nobody waits for the frames any more."""
    os.read(0, 1)
    os._exit(1)


def read(path: str, sampling: Sampling) -> tuple[Told, list[Image.Image]]:
    """The chosen frames of a clip.

    Raises:
        MediaError: whatever went wrong; its text names no source.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            return _read(path, file, os.fstat(file.fileno()).st_size, sampling)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it", "ask for fewer --frames") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        said = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise MediaError(f"damaged, or of no known video format ({said or type(error).__name__})", AGAIN) from error


def _read(path: str, file: BinaryIO, size: int, sampling: Sampling) -> tuple[Told, list[Image.Image]]:
    found = survey(file, size)
    if sampling.backend == "decord" and (reason := distrust(found, file)):
        raise MediaError(f"decord cannot be trusted with it: {reason}", "leave out --video-backend")
    if sampling.backend != "decord" and found.keys:
        with suppress(Misplaced, pyav.av.FFmpegError):
            return _decoded(path, file, found, sampling)
    if sampling.backend != "decord":
        found = pyav.counted(file, found)
    return _decoded(path, file, found, sampling)


def _decoded(path: str, file: BinaryIO, found: Survey, sampling: Sampling) -> tuple[Told, list[Image.Image]]:
    wanted = [found.stamps[number] for number in sampling.choose(found.times)]
    factor = reduction(len(wanted), found.size)
    if sampling.backend == "decord":
        return _told(found, *_by_decord(path, found, wanted, factor), factor)
    decode = pyav.frames_by_seeking if found.keys else pyav.frames_from_start
    return _told(found, decode(file, found, wanted, factor), pyav.version(), factor)


def distrust(found: Survey, file: BinaryIO) -> str:
    """Why decord is not to be used; empty where it may be."""
    if not CONTAINERS & set(found.format.split(",")) or found.codec not in CODECS:
        return f"{found.codec} in {found.format.split(',')[0]}"
    if found.oddities:
        return ", ".join(found.oddities)
    if not find_spec("decord"):
        return "it is not installed"
    # decord2 3.4, the same module where decord has no wheels, turns the shape of such pictures, but garbles them.
    return "pictures on their side" if pyav.is_on_its_side(file) else ""


def reduction(frames: int, size: tuple[int, int]) -> int:
    """By what factor each side of the frames shrinks, so that all fit."""
    width, height = size
    return next(
        factor for factor in range(1, 1 << 16) if frames * (width // factor) * (height // factor) <= MOST_PIXELS
    )


def _by_decord(path: str, found: Survey, wanted: list[int], factor: int) -> tuple[list[Shown], str]:
    import decord

    try:
        return _numbered(decord, path, found, wanted, factor), f"decord {decord.__version__}"
    except Exception as error:
        problem = f"decord cannot read it ({type(error).__name__})"
        raise MediaError(problem, "leave out --video-backend") from error


def _numbered(decord: Any, path: str, found: Survey, wanted: list[int], factor: int) -> list[Shown]:
    """Raises ValueError where decord sees other frames than PyAV."""
    # More threads break VP9, and gain little.
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    if len(reader) != len(found.stamps):
        raise ValueError(f"{len(reader)} frames instead of {len(found.stamps)}")
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    shown = list[Shown]()
    for stamp in wanted:
        number = found.stamps.index(stamp)
        if abs(starts[number] - starts[0] - found.times[number]) > NEAR:
            raise ValueError(f"frame {number} at {starts[number] - starts[0]:.3f} s")
        image = Image.fromarray(reader[number].asnumpy())
        shown.append(Shown(stamp, image.reduce(factor) if factor > 1 else image))
    return shown


def _told(found: Survey, shown: list[Shown], decoder: str, factor: int) -> tuple[Told, list[Image.Image]]:
    notes = list[str]()
    size = shown[0].image.size
    if factor > 1:
        notes.append(f"frames of {found.size[0]}x{found.size[1]} reduced to {size[0]}x{size[1]}")
    if any(one.image.size != size for one in shown):
        notes.append(f"frames of several sizes, made {size[0]}x{size[1]}")
    times = tuple(float((one.stamp - found.stamps[0]) * found.unit) for one in shown)
    frames = [one.image if one.image.size == size else one.image.resize(size) for one in shown]
    return Told(size, times, decoder, tuple(notes)), frames
