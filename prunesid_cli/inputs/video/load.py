"""A video file -> `Media`: some of its frames, upright, with their times. No decoder runs in this process.

Each clip is decoded by a process of its own (`worker`), which is ended where it takes too long: a decoder that hangs
or crashes on a file costs that file. It is started afresh, never forked: decord deadlocks in forks. Every failure is a
`MediaError` that names the source. Safe to call from threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Timer
from typing import Any

from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.file_type import HEADER_BYTES, FileType, detect_file_type
from prunesid_cli.inputs.image import Media, hash_bytes, load_image, open_without_waiting, read_bytes, unreadable
from prunesid_cli.inputs.listing import VIDEO_EXTENSIONS
from prunesid_cli.inputs.video.frame_sampling import FrameSampling

MAX_BYTES = 64 << 30
CHUNK = 1 << 20
PATIENCE, PACE = 120.0, 5e6
"""A clip may take so many seconds, and one more for so many bytes."""

# The interpreter starts isolated, so that no file in the working folder stands in for a module.
START = (
    "import sys; sys.path[:] = sys.argv.pop(1).split(chr(10)); "
    "from prunesid_cli.inputs.video.worker import main; main()"
)


# What decoders print is nothing to a user. The worker ends when its stdin does, and so never outlives this process; an
# interrupt is for this process alone.
PIPES: dict[str, Any] = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.DEVNULL,
    "start_new_session": True,
}


def load_media(source: str | Path, sampling: FrameSampling) -> Media:
    """Read and decode a picture or clip."""
    name = os.fspath(source)
    return load_clip(name, sampling) if is_clip_file(name) else load_image(name)


def hash_media(source: str) -> str:
    """The digest that `load_media` gives."""
    return hash_clip(source) if is_clip_file(source) else hash_bytes(read_bytes(source))


def is_clip_file(source: str) -> bool:
    """Whether a file is one, by its first bytes; by its name where those say nothing."""
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            return False
        with open(source, "rb", opener=open_without_waiting) as file:
            kind = detect_file_type(file.read(HEADER_BYTES))
    except (OSError, ValueError):  # reading it will say why
        return False
    return (
        kind is FileType.VIDEO or kind is FileType.UNKNOWN and os.path.splitext(source)[1].lower() in VIDEO_EXTENSIONS
    )


def hash_clip(source: str) -> str:
    """sha256 of a file that may be larger than memory."""
    try:
        size = os.stat(source).st_size
        if size > MAX_BYTES:
            raise MediaError(
                f"{source}: larger than the limit of {MAX_BYTES >> 30} GiB for a clip", "cut it into parts"
            )
        digest = hashlib.sha256()
        with open(source, "rb", opener=open_without_waiting) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        raise unreadable(source, error) from error
    return digest.hexdigest()


def load_clip(source: str, sampling: FrameSampling, digest: str = "") -> Media:
    """Some frames of the file named `source`; `digest`: as `clip_digest` gives it, where it is known already."""
    digest = digest or hash_clip(source)
    if not find_spec("av"):
        raise MediaError(f"{source}: clips need a package that is not installed", "pip install av")
    patience = PATIENCE + os.path.getsize(source) / PACE
    with _ending(subprocess.Popen(_command(source, sampling), **PIPES)) as worker:
        is_late = Event()

        def end() -> None:
            is_late.set()
            worker.kill()

        watch = Timer(patience, end)
        watch.daemon = True
        watch.start()
        try:
            told, frames = _received(worker, source)
            if not told:
                raise _ended(source, worker.wait(), patience if is_late.is_set() else None)
        finally:
            watch.cancel()
    notes, times = tuple(told["notes"]), tuple(told["times"])
    return Media(
        source=source,
        digest=digest,
        size=frames[0].size,
        notes=notes,
        sampling=str(sampling),
        decoder=told["decoder"],
        frames=frames,
        times=times,
    )


@contextmanager
def _ending(worker: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with worker:
        try:
            yield worker
        finally:
            worker.kill()


def _command(source: str, sampling: FrameSampling) -> list[str]:
    # An absolute path is never the name of one of FFmpeg's protocols.
    args = ["\n".join(sys.path), os.path.abspath(source), json.dumps(asdict(sampling))]
    return [sys.executable, "-I", "-c", START, *args]


def _received(worker: subprocess.Popen[bytes], source: str) -> tuple[dict[str, Any], tuple[Image.Image, ...]]:
    """What a worker says of a clip, nothing where it ended before it said it, and its frames."""
    assert worker.stdout is not None
    frames = list[Image.Image]()
    while (line := worker.stdout.readline()).endswith(b"\n"):
        said = json.loads(line)
        if "error" in said:
            raise MediaError(f"{source}: {said['error']}", said["hint"])
        if "times" in said:
            return said, tuple(frames)
        if "again" in said:
            frames.clear()
            continue
        width, height = said["frame"]
        data = worker.stdout.read(width * height * 3)
        if len(data) < width * height * 3:
            break
        frames.append(Image.frombytes("RGB", (width, height), data))
    return {}, ()


def _ended(source: str, code: int, patience: float | None) -> MediaError:
    if patience is not None:
        return MediaError(f"{source}: not decoded within {patience:.0f} s", "convert it to another format, or cut it")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return MediaError(f"{source}: the video decoder crashed ({how})", "try --video-backend pyav, or copy it again")
