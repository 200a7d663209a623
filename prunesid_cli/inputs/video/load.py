"""A video file -> `Media`: some of its frames, upright, with their times.

Clips are decoded in worker processes, which end if they take too long: a decoder that hangs or crashes on a file fails
that file alone. decord is imported in the workers only, as it deadlocks in forks of a process that has used it. Every
failure is a `MediaError` that names the file. All functions are thread-safe.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.decoding import DEFAULT_DECODING, Decoding, picture_limit
from prunesid_cli.inputs.file_type import HEADER_BYTES, FileType, detect_file_type
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.image import Media, hash_bytes, load_image, read_bytes
from prunesid_cli.inputs.listing import VIDEO_EXTENSIONS
from prunesid_cli.inputs.source import FileSource, to_media_error
from prunesid_cli.inputs.video.frame_sampling import FrameSampling
from prunesid_cli.runtime.worker_pool import WorkerEnded, WorkerPool, describe_exit, is_supported
from prunesid_cli.runtime.worker_server import end_after

MAX_BYTES = 64 << 30
CHUNK_BYTES = 1 << 20
BASE_TIMEOUT_SECONDS = 120.0
TIMEOUT_BYTES_PER_SECOND = 5e6
"""The timeout of a clip grows by one second for this number of bytes."""


def load_media(source: str | Path, sampling: FrameSampling, decoding: Decoding = DEFAULT_DECODING) -> Media:
    """Read and decode an image or clip."""
    path = os.fspath(source)
    if is_clip_file(path):
        return load_clip(path, sampling, decoding=decoding)
    return load_image(path, decoding=decoding)


def hash_media(path: str) -> str:
    """The digest that `load_media` gives, without decoding."""
    return hash_clip(path) if is_clip_file(path) else hash_bytes(read_bytes(path))


def is_clip_file(path: str, files: FileSource = FILES) -> bool:
    """Whether a file is a clip, by its first bytes, or by its name if those are of no known type."""
    try:
        if not files.stat(path).is_file:
            return False
        with files.open(path) as file:
            file_type = detect_file_type(file.read(HEADER_BYTES))
    except (OSError, ValueError):  # reading the file reports the error
        return False
    if file_type is FileType.UNKNOWN:
        return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS
    return file_type is FileType.VIDEO


def hash_clip(path: str, files: FileSource = FILES) -> str:
    """SHA-256 in hex of a file, which may be larger than memory.

    Raises:
        MediaError: The file cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        if files.stat(path).size > MAX_BYTES:
            problem = f"{path}: larger than the limit of {MAX_BYTES >> 30} GiB for a clip"
            raise MediaError(problem, "cut it into parts")
        digest = hashlib.sha256()
        with files.open(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        raise to_media_error(path, error, files) from error
    return digest.hexdigest()


def load_clip(path: str, sampling: FrameSampling, digest: str = "", decoding: Decoding = DEFAULT_DECODING) -> Media:
    """Decode some frames of a local video file in a worker process, where the system has workers.

    Args:
        path: The file.
        sampling: Which frames to take.
        digest: Result of `hash_clip(path)`, if it is known already.
        decoding: The time limit.

    Raises:
        MediaError: The clip cannot be decoded.
    """
    if not is_supported():
        return read_clip(path, sampling, digest, decoding)
    digest = digest or hash_clip(path)  # raises for what is no regular file
    require_decoder(path)
    try:
        media: Media = _clip_pool().call((path, sampling, digest, decoding))
    except WorkerEnded as ended:
        raise ended_error(path, ended.exit_code, decoding) from ended
    return media


def read_clip(path: str, sampling: FrameSampling, digest: str = "", decoding: Decoding = DEFAULT_DECODING) -> Media:
    """`load_clip` in this process. In a worker, the process ends after the time limit."""
    digest = digest or hash_clip(path)
    require_decoder(path)
    from prunesid_cli.inputs.video.decode import decode_clip

    end_after(clip_limit(path, decoding))
    try:
        with FILES.local_copy(path) as local:
            # An absolute path is never the name of one of FFmpeg's protocols.
            clip = decode_clip(os.path.abspath(local), sampling)
    except MediaError as error:
        raise MediaError(f"{path}: {error.problem}", error.hint) from error
    except OSError as error:
        raise to_media_error(path, error) from error
    return Media(
        source=path,
        digest=digest,
        size=clip.frames[0].size,
        notes=clip.notes,
        sampling=str(sampling),
        decoder=clip.decoder,
        frames=clip.frames,
        times=clip.times,
    )


def require_decoder(path: str) -> None:
    """Raises `MediaError` if PyAV is not installed."""
    if not find_spec("av"):
        raise MediaError(f"{path}: clips need a package that is not installed", "pip install av")


def clip_limit(path: str, decoding: Decoding) -> float:
    """Seconds after which decoding of a clip is given up; 0: never. By default, a large file has more."""
    if decoding.limit is not None:
        return decoding.limit
    return BASE_TIMEOUT_SECONDS + FILES.stat(path).size / TIMEOUT_BYTES_PER_SECOND


def ended_error(path: str, exit_code: int, decoding: Decoding) -> MediaError:
    """The error of an input that ended the worker process that decoded it."""
    is_clip = is_clip_file(path)
    if exit_code == -signal.SIGALRM:
        limit = clip_limit(path, decoding) if is_clip else picture_limit(decoding)
        return MediaError(f"{path}: not decoded within {limit:.4g} s", "give it more time with --timeout, or cut it")
    if exit_code == -signal.SIGKILL:
        problem = f"{path}: the process that decoded it was killed, perhaps for lack of memory"
        return MediaError(problem, "try it again, with fewer --workers")
    problem = f"{path}: the decoder crashed ({describe_exit(exit_code)})"
    return MediaError(problem, "copy or download it again" + ", or try --video-backend pyav" * is_clip)


@cache
def _clip_pool() -> WorkerPool:
    """The workers that decode clips for this process, which does nothing else with them."""
    return WorkerPool(f"{__name__}:make_clip_reader")


def make_clip_reader(setup: None) -> Callable[[Any], Media]:
    """What the workers of `load_clip` do."""
    import_module("prunesid_cli.inputs.video.decode")
    return lambda request: read_clip(*request)
