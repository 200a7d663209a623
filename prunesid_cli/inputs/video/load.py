"""A video file -> `Media`: some of its frames, upright, with their times. No decoder runs in this process.

Each clip is decoded by a process of its own (`worker`), which is killed if it takes too long: a decoder that hangs or
crashes on a file fails that file alone. The process is started afresh, not forked: decord deadlocks in forks. Every
failure is a `MediaError` that names the file. All functions are thread-safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Timer
from typing import Any

from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.decoding import DEFAULT_DECODING, Decoding
from prunesid_cli.inputs.file_type import HEADER_BYTES, FileType, detect_file_type
from prunesid_cli.inputs.image import Media, hash_bytes, load_image, read_bytes
from prunesid_cli.inputs.listing import VIDEO_EXTENSIONS
from prunesid_cli.inputs.source import LOCAL, FileSource, to_media_error
from prunesid_cli.inputs.video.frame_sampling import FrameSampling

MAX_BYTES = 64 << 30
CHUNK_BYTES = 1 << 20
BASE_TIMEOUT_SECONDS = 120.0
TIMEOUT_BYTES_PER_SECOND = 5e6
"""The timeout of a clip grows by one second for this number of bytes."""

# The interpreter starts isolated, so that no file in the working folder is imported as a module.
WORKER_CODE = (
    "import sys; sys.path[:] = sys.argv.pop(1).split(chr(10)); "
    "from prunesid_cli.inputs.video.worker import main; main()"
)

# The messages of decoders are of no use to a user. The worker ends when its stdin is closed, so it never outlives this
# process. In a session of its own, it gets no interrupt from the terminal: this process handles it.
WORKER_OPTIONS: dict[str, Any] = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.DEVNULL,
    "start_new_session": True,
}


def load_media(source: str | Path, sampling: FrameSampling, decoding: Decoding = DEFAULT_DECODING) -> Media:
    """Read and decode an image or clip."""
    path = os.fspath(source)
    if is_clip_file(path):
        return load_clip(path, sampling, decoding=decoding)
    return load_image(path, decoding=decoding)


def hash_media(path: str) -> str:
    """The digest that `load_media` gives, without decoding."""
    return hash_clip(path) if is_clip_file(path) else hash_bytes(read_bytes(path))


def is_clip_file(path: str, files: FileSource = LOCAL) -> bool:
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


def hash_clip(path: str, files: FileSource = LOCAL) -> str:
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
    """Decode some frames of a local video file.

    Args:
        path: The file.
        sampling: Which frames to take.
        digest: Result of `hash_clip(path)`, if it is known already.
        decoding: The time limit; None: `BASE_TIMEOUT_SECONDS`, and more for a large file.

    Raises:
        MediaError: The clip cannot be decoded.
    """
    digest = digest or hash_clip(path)
    if not find_spec("av"):
        raise MediaError(f"{path}: clips need a package that is not installed", "pip install av")
    timeout = decoding.limit
    if timeout is None:
        timeout = BASE_TIMEOUT_SECONDS + LOCAL.stat(path).size / TIMEOUT_BYTES_PER_SECOND
    is_timed_out = Event()
    with start_worker(path, sampling) as worker:

        def end_worker() -> None:
            is_timed_out.set()
            worker.kill()

        timer = Timer(timeout, end_worker)
        timer.daemon = True
        if timeout:
            timer.start()
        try:
            info, frames = _receive(worker, path)
            if not info:
                code = worker.wait()  # before `is_timed_out` is read: the timer may be what ends the worker
                raise _explain_exit(path, code, timeout if is_timed_out.is_set() else None)
        finally:
            timer.cancel()
            worker.kill()
    return Media(
        source=path,
        digest=digest,
        size=frames[0].size,
        notes=tuple(info["notes"]),
        sampling=str(sampling),
        decoder=info["decoder"],
        frames=frames,
        times=tuple(info["times"]),
    )


def start_worker(path: str, sampling: FrameSampling) -> subprocess.Popen[bytes]:
    """Start the process that decodes a clip; see `worker` for what it writes to its stdout."""
    # An absolute path is never the name of one of FFmpeg's protocols.
    args = ["\n".join(sys.path), os.path.abspath(path), json.dumps(asdict(sampling))]
    return subprocess.Popen([sys.executable, "-I", "-c", WORKER_CODE, *args], **WORKER_OPTIONS)


def _receive(worker: subprocess.Popen[bytes], path: str) -> tuple[dict[str, Any], tuple[Image.Image, ...]]:
    """What a worker reports about a clip, and its frames; nothing if the worker ended before it reported."""
    assert worker.stdout is not None
    frames = list[Image.Image]()
    while (line := worker.stdout.readline()).endswith(b"\n"):
        message = json.loads(line)
        if "error" in message:
            raise MediaError(f"{path}: {message['error']}", message["hint"])
        if "times" in message:
            return message, tuple(frames)
        if "restart" in message:
            frames.clear()
            continue
        width, height = message["frame"]
        data = worker.stdout.read(width * height * 3)
        if len(data) < width * height * 3:
            break
        frames.append(Image.frombytes("RGB", (width, height), data))
    return {}, ()


def _explain_exit(path: str, code: int, timeout: float | None) -> MediaError:
    if timeout is not None:
        return MediaError(f"{path}: not decoded within {timeout:.4g} s", "give it more time with --limit, or cut it")
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return MediaError(f"{path}: the video decoder crashed ({reason})", "try --video-backend pyav, or copy it again")
