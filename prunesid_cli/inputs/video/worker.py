"""The process that decodes one clip: whatever its decoder does, hang or crash, ends with it.

It is called with a path and a sampling as JSON, and writes to stdout lines of JSON: {"frame": [width, height]}, which
its RGB bytes follow, for each frame as it is decoded; {"again": true} where it begins anew, and those so far do not
count; and last `Told`, or {"error", "hint"}. So it never holds more than one frame.

"auto" is PyAV: it is as fast as decord, reads more formats, and tells of most damage, which decord paints over. (In
VP8, VP9 and HEVC a flipped bit mostly decodes to something, and nobody can tell.)

decord decodes on request, and only where it can be trusted: it numbers frames, and is silently wrong where numbers and
times part ways (`Survey.oddities`), and with other codecs and containers than those named here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from threading import Thread
from typing import Any, BinaryIO

from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.video import pyav_decoder as pyav
from prunesid_cli.inputs.video.frame_sampling import FrameSampling
from prunesid_cli.inputs.video.probe import AGAIN, Survey, survey
from prunesid_cli.inputs.video.pyav_decoder import Misplaced, Shown

MOST_PIXELS = 128_000_000
"""Of all frames of a clip together, about 400 MB. Larger ones are reduced in size."""
CONTAINERS = frozenset({"mp4", "mov", "matroska", "webm"})
CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
NEAR = 0.002
"""Seconds that two decoders may differ about the time of a frame."""


@dataclass(frozen=True)
class Told:
    """What is said of a clip after its frames."""

    times: tuple[float, ...]
    decoder: str
    notes: tuple[str, ...]


class Again:
    """The frames so far do not count: another way is tried."""


Said = Image.Image | Again | Told


def main() -> None:
    path, sampling = sys.argv[1], FrameSampling(**json.loads(sys.argv[2]))
    Thread(target=_end_with_stdin, daemon=True).start()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what decoders print is no frame
    try:
        for said in read(path, sampling):
            out.write(_written(said))
    except MediaError as error:
        out.write(_line({"error": error.problem, "hint": error.hint}))
    out.flush()
    os._exit(0)  # decord may wait for its threads for ever


def _written(said: Said) -> bytes:
    if isinstance(said, Image.Image):
        return _line({"frame": said.size}) + said.tobytes()
    return _line({"again": True} if isinstance(said, Again) else asdict(said))


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _end_with_stdin() -> None:
    """Nobody waits for the frames any more."""
    os.read(0, 1)
    os._exit(1)


def read(path: str, sampling: FrameSampling) -> Iterator[Said]:
    """The chosen frames of a clip, of one size, and then what there is to say of them.

    Raises:
        MediaError: whatever went wrong; its text names no source.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            yield from _read(path, file, os.fstat(file.fileno()).st_size, sampling)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it", "ask for fewer --frames") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        said = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise MediaError(f"damaged, or of no known video format ({said or type(error).__name__})", AGAIN) from error


def _read(path: str, file: BinaryIO, size: int, sampling: FrameSampling) -> Iterator[Said]:
    found = survey(file, size)
    if sampling.backend == "decord":
        if reason := distrust(found, file):
            raise MediaError(f"decord cannot be trusted with it: {reason}", "leave out --video-backend")
        yield from _decoded(found, sampling, partial(_by_decord, path))
        return
    if found.keys:
        try:
            yield from _decoded(found, sampling, partial(pyav.frames_by_seeking, file))
            return
        except (Misplaced, pyav.av.FFmpegError):
            yield Again()
    yield from _decoded(pyav.counted(file, found), sampling, partial(pyav.frames_from_start, file))


def _decoded(
    found: Survey, sampling: FrameSampling, decode: Callable[[Survey, Sequence[int], int], Iterator[Shown]]
) -> Iterator[Said]:
    wanted = [found.stamps[number] for number in sampling.choose(found.times)]
    factor = reduction(len(wanted), found.size)
    sizes, times = list[tuple[int, int]](), list[float]()
    for one in decode(found, wanted, factor):
        sizes.append(one.image.size)
        times.append(float((one.stamp - found.stamps[0]) * found.unit))
        yield one.image if one.image.size == sizes[0] else one.image.resize(sizes[0])
    decoder = decord_version() if sampling.backend == "decord" else pyav.version()
    yield Told(tuple(times), decoder, tuple(_notes(found, sizes, factor)))


def _notes(found: Survey, sizes: Sequence[tuple[int, int]], factor: int) -> Iterator[str]:
    width, height = sizes[0]
    if factor > 1:
        yield f"frames of {found.size[0]}x{found.size[1]} reduced to {width}x{height}"
    if len(set(sizes)) > 1:
        yield f"frames of several sizes, made {width}x{height}"


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


def _by_decord(path: str, found: Survey, wanted: Sequence[int], factor: int) -> Iterator[Shown]:
    try:
        yield from _numbered(path, found, wanted, factor)
    except Exception as error:
        problem = f"decord cannot read it ({type(error).__name__})"
        raise MediaError(problem, "leave out --video-backend") from error


def decord_version() -> str:
    import decord

    return f"decord {decord.__version__}"


def _numbered(path: str, found: Survey, wanted: Sequence[int], factor: int) -> Iterator[Shown]:
    """Raises ValueError where decord sees other frames than PyAV."""
    import decord

    # More threads break VP9, and gain little.
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    if len(reader) != len(found.stamps):
        raise ValueError(f"{len(reader)} frames instead of {len(found.stamps)}")
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    for stamp in wanted:
        number = found.stamps.index(stamp)
        if abs(starts[number] - starts[0] - found.times[number]) > NEAR:
            raise ValueError(f"frame {number} at {starts[number] - starts[0]:.3f} s")
        image = Image.fromarray(reader[number].asnumpy())
        yield Shown(stamp, image.reduce(factor) if factor > 1 else image)
