"""Decodes some frames of a clip in this process.

The backend "auto" is PyAV: it is as fast as decord, reads more formats, and reports most damage, which decord conceals.
(In VP8, VP9 and HEVC, a flipped bit mostly decodes to something, and no decoder can detect it.)

decord decodes only on request, and only clips that it reads right: it numbers frames, and is silently wrong if numbers
and times do not correspond (`ClipProbe.irregularities`), and with codecs and containers other than those named here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.source import LOCAL
from prunesid_cli.inputs.video import pyav_decoder
from prunesid_cli.inputs.video.frame_sampling import FrameSampling
from prunesid_cli.inputs.video.probe import COPY_HINT, ClipProbe, probe_clip
from prunesid_cli.inputs.video.pyav_decoder import DecodedFrame, SeekError

MAX_TOTAL_PIXELS = 128_000_000
"""Maximum number of pixels of all frames of a clip together, about 400 MB. Larger frames are reduced in size."""
MAX_REDUCTION = 1 << 16
DECORD_CONTAINERS = frozenset({"mp4", "mov", "matroska", "webm"})
DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
DECORD_HINT = "leave out --video-backend"
TIME_TOLERANCE_SECONDS = 0.002
"""Difference allowed between the times that two decoders give for one frame."""
MAX_ERROR_CHARACTERS = 200


@dataclass(frozen=True)
class DecodedClip:
    """Some frames of a clip.

    Attributes:
        frames: RGB, upright, all of one size.
        times: Seconds from the start of the clip, one for each frame.
        decoder: Name and version of the decoder.
        notes: What was done to the frames that the user might not expect.
    """

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    decoder: str
    notes: tuple[str, ...]


Decode = Callable[[ClipProbe, Sequence[int], int], Iterator[DecodedFrame]]


def decode_clip(path: str, sampling: FrameSampling) -> DecodedClip:
    """Decode the sampled frames of a clip.

    Raises:
        MediaError: The clip cannot be decoded. The message does not name it.
    """
    try:
        with LOCAL.open(path) as file:
            return _decode_file(path, file, os.fstat(file.fileno()).st_size, sampling)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("not enough memory to decode it", "ask for fewer --frames") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        text = " ".join(str(getattr(error, "strerror", None) or error).split())[:MAX_ERROR_CHARACTERS]
        problem = f"damaged, or of no known video format ({text or type(error).__name__})"
        raise MediaError(problem, COPY_HINT) from error


def _decode_file(path: str, file: BinaryIO, size: int, sampling: FrameSampling) -> DecodedClip:
    probe = probe_clip(file, size)
    if sampling.backend == "decord":
        if reason := reason_against_decord(probe, file):
            raise MediaError(f"decord cannot be trusted with it: {reason}", DECORD_HINT)
        return _decode_frames(probe, sampling, partial(_decode_by_decord, path), decord_version())
    version = pyav_decoder.pyav_version()
    if probe.keyframes:
        with suppress(SeekError, pyav_decoder.av.FFmpegError):
            return _decode_frames(probe, sampling, partial(pyav_decoder.decode_by_seeking, file), version)
    probe = pyav_decoder.probe_by_decoding(file, probe)
    return _decode_frames(probe, sampling, partial(pyav_decoder.decode_from_start, file), version)


def _decode_frames(probe: ClipProbe, sampling: FrameSampling, decode: Decode, version: str) -> DecodedClip:
    timestamps = [probe.timestamps[index] for index in sampling.select_frames(probe.times)]
    factor = reduction_factor(len(timestamps), probe.size)
    decoded = list(decode(probe, timestamps, factor))
    size = width, height = decoded[0].image.size
    notes = [*probe.notes, *dict.fromkeys(frame.note for frame in decoded if frame.note)]
    if factor > 1:
        notes.append(f"frames of {probe.size[0]}x{probe.size[1]} reduced to {width}x{height}")
    if any(frame.image.size != size for frame in decoded):
        notes.append(f"frames of several sizes, made {width}x{height}")
    return DecodedClip(
        frames=tuple(frame.image if frame.image.size == size else frame.image.resize(size) for frame in decoded),
        times=tuple(float((frame.timestamp - probe.timestamps[0]) * probe.time_base) for frame in decoded),
        decoder=version,
        notes=tuple(notes),
    )


def reason_against_decord(probe: ClipProbe, file: BinaryIO) -> str:
    """Why decord must not decode a clip; empty if it may."""
    if not DECORD_CONTAINERS & set(probe.format.split(",")) or probe.codec not in DECORD_CODECS:
        return f"{probe.codec} in {probe.format.split(',')[0]}"
    if probe.irregularities:
        return ", ".join(probe.irregularities)
    if probe.may_be_transparent:
        return "it may be transparent"
    if not find_spec("decord"):
        return "it is not installed"
    # decord2 3.4, the same module on systems without wheels of decord, turns the shape of such pictures, but garbles
    # their pixels.
    return "pictures on their side" if pyav_decoder.is_stored_sideways(file) else ""


def reduction_factor(num_frames: int, size: tuple[int, int]) -> int:
    """The factor by which each side of the frames shrinks, so that all together stay below `MAX_TOTAL_PIXELS`."""
    width, height = size
    return next(
        factor
        for factor in range(1, MAX_REDUCTION)
        if num_frames * (width // factor) * (height // factor) <= MAX_TOTAL_PIXELS
    )


def decord_version() -> str:
    """Name and version of the decoder."""
    import decord

    return f"decord {decord.__version__}"


def _decode_by_decord(path: str, probe: ClipProbe, timestamps: Sequence[int], factor: int) -> Iterator[DecodedFrame]:
    try:
        yield from _decode_by_number(path, probe, timestamps, factor)
    except Exception as error:
        problem = f"decord cannot read it ({type(error).__name__})"
        raise MediaError(problem, DECORD_HINT) from error


def _decode_by_number(path: str, probe: ClipProbe, timestamps: Sequence[int], factor: int) -> Iterator[DecodedFrame]:
    """Raises ValueError if decord sees other frames than PyAV."""
    import decord

    # More threads break VP9, and gain little.
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    if len(reader) != len(probe.timestamps):
        raise ValueError(f"{len(reader)} frames instead of {len(probe.timestamps)}")
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    for timestamp in timestamps:
        number = probe.timestamps.index(timestamp)
        if abs(starts[number] - starts[0] - probe.times[number]) > TIME_TOLERANCE_SECONDS:
            raise ValueError(f"frame {number} at {starts[number] - starts[0]:.3f} s")
        image = Image.fromarray(reader[number].asnumpy())
        yield DecodedFrame(timestamp, image.reduce(factor) if factor > 1 else image)
