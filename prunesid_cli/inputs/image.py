"""An image's bytes -> `Media`: upright RGB pixels, a digest, and what the user should be told about them.

Bytes are read once: the digest names exactly what was decoded. Only regular files are opened, so a FIFO never
blocks a run. Every failure is a `MediaError` that names the source and costs one item. Safe to call from threads.

Embedded colour profiles (ICC) are not applied: the processors of the models call a plain `convert("RGB")`, so
the vision towers were trained on pictures read that way.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import stat
import warnings
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.color_mode import apply_orientation, oriented_size, to_rgb
from prunesid_cli.inputs.file_type import FileType, detect_file_type
from prunesid_cli.types import Provenance

MAX_BYTES = 1 << 30
MAX_PIXELS = 100_000_000  # about 400 MB once decoded: Pillow takes four bytes a pixel
TOO_MANY = f"more than the limit of {MAX_PIXELS // 10**6} megapixels"
SMALLER = "make the picture smaller"

# What Pillow may decode. A list, because it would also hand PostScript to ghostscript, and guess at formats
# without a signature.
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "QOI",
)  # fmt: skip

# Only formats that mean a sequence to whoever made the file. MPO is missing on purpose: its further pictures are
# the gain map or preview that a phone adds to a photograph.
SEQUENCES = {
    "GIF": "animated, {} frames: the first is used",
    "PNG": "animated, {} frames: the first is used",
    "WEBP": "animated, {} frames: the first is used",
    "AVIF": "animated, {} frames: the first is used",
    "TIFF": "{} pages: the first is used",
    "HEIF": "{} pictures in the file: the main one is used",
}

REASONS = {
    FileNotFoundError: ("no such file or folder", "check the spelling; quote names that hold spaces"),
    NotADirectoryError: ("no such file or folder", "a part of this path is a file, not a folder"),
    PermissionError: ("no permission to read it", "check it with: ls -l"),
    MemoryError: ("not enough memory to decode it", f"{SMALLER}, or load fewer at once"),
}

# Pillow reports on stderr what is decided or told here: pictures over 89 MP (`MAX_PIXELS` decides), odd EXIF, odd
# transparency. One filter, set at import and only for its modules: `warnings.catch_warnings` and a changed
# `Image.MAX_IMAGE_PIXELS` would both reach into other threads in the middle of their work.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, kw_only=True)
class Media(Provenance):
    """One decoded input: an image or a clip.

    Attributes:
        frames: RGB, upright. One for an image.
        times: Seconds from the start of a clip, one for each frame; empty for an image.
    """

    frames: tuple[Image.Image, ...] = field(repr=False)
    times: tuple[float, ...] = ()

    @property
    def image(self) -> Image.Image:
        return self.frames[0]

    @property
    def is_clip(self) -> bool:
        return bool(self.times)


def media_from_image(image: Image.Image) -> Media:
    """An RGB image that comes from no file."""
    return media_from_frames((image,))


def media_from_frames(frames: tuple[Image.Image, ...], times: tuple[float, ...] = ()) -> Media:
    """RGB frames of one size that come from no file; with `times`, they are a clip."""
    return Media(source="", digest="", size=frames[0].size, notes=(), frames=frames, times=times)


def load_image(source: str | Path) -> Media:
    """Read and decode the file named `source`."""
    name = os.fspath(source)
    return load_image_bytes(read_bytes(name), name)


def load_image_bytes(data: bytes, source: str, digest: str = "", min_decode_side: int | None = None) -> Media:
    """Decode bytes that were read elsewhere, as from stdin; `source` names them in messages.

    digest: as `digest_of` gives it, where it is known already.
    enough: pixels of the shorter side down to which a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is
        faster than to shrink it, and nearly the same. None: never.
    """
    if not data:
        raise MediaError(f"{source}: empty file", "copy or download it again")
    try:
        image, size, notes = _decode(data, source, min_decode_side)
    except MediaError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise _undecodable(source, data, error) from error
    return Media(source=source, digest=digest or hash_bytes(data), size=size, notes=notes, frames=(image,))


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unreadable(source: str, error: Exception) -> MediaError:
    """What the system said of a path, as a `MediaError`."""
    reason = getattr(error, "strerror", None) or str(error)
    problem, hint = REASONS.get(type(error), (reason, "check that it is a file or folder that can be read"))
    if isinstance(error, FileNotFoundError) and os.path.islink(source):
        problem, hint = "a link that leads nowhere", "mend or remove it"
    return MediaError(f"{source or repr(source)}: {problem}", hint)


def read_bytes(source: str) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`."""
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
            raise MediaError(f"{source}: {what}, not a regular file", "name an image; `-` reads one from stdin")
        _check_bytes(source, status.st_size)
        with open(source, "rb", opener=open_without_waiting) as file:
            return file.read()
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL in the name
        raise unreadable(source, error) from error


def open_without_waiting(path: str, flags: int) -> int:
    """Even if a FIFO took the file's place since it was looked at."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_bytes(source: str, size: int) -> None:
    if size > MAX_BYTES:
        raise MediaError(f"{source}: larger than the limit of {MAX_BYTES >> 30} GiB for an image", SMALLER)


def _check_pixels(source: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise MediaError(f"{source}: {width} x {height} pixels, {TOO_MANY}", SMALLER)


def _decode(data: bytes, source: str, min_decode_side: int | None) -> tuple[Image.Image, tuple[int, int], tuple[str, ...]]:
    """The upright picture, its size in the file, notes."""
    _check_bytes(source, len(data))
    if detect_file_type(data) is FileType.HEIC:
        _require_heif(source)
    with Image.open(BytesIO(data), formats=_formats()) as file:
        _check_pixels(source, file.size)
        whole, draft_note = file.size, _draft(file, min_decode_side)
        file.load()
        rgb, colour_note = to_rgb(file)
        upright, turn_note = apply_orientation(rgb, file)
        size = oriented_size(whole, file) if draft_note else upright.size
        return upright, size, tuple(note for note in (_sequence_note(file), draft_note, colour_note, turn_note) if note)


def _draft(file: Image.Image, min_decode_side: int | None) -> str:
    """Have a JPEG decoded smaller, where both sides keep `enough` pixels; a note where that is so."""
    if min_decode_side is None or file.format not in ("JPEG", "MPO"):
        return ""
    width = file.width
    file.draft(None, (min_decode_side, min_decode_side))  # type: ignore[arg-type]
    scale = round(width / file.width)
    return f"decoded at 1/{scale} of its size" if scale > 1 else ""


def _require_heif(source: str) -> None:
    if "HEIF" not in _formats():
        problem = f"{source}: HEIC images need a package that is not installed"
        raise MediaError(problem, "pip install pillow-heif")


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow can open; it raises KeyError for one that it does not know."""
    if find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _sequence_note(file: Image.Image) -> str:
    count = getattr(file, "n_frames", 1)
    return SEQUENCES.get(file.format or "", "").format(count) if count > 1 else ""


def _undecodable(source: str, data: bytes, error: Exception) -> MediaError:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, far above `MAX_PIXELS`
        said = re.search(r"\d+ pixels", str(error))
        return MediaError(f"{source}: {said[0]}, {TOO_MANY}" if said else f"{source}: {TOO_MANY}", SMALLER)
    if type(error) in REASONS:
        return unreadable(source, error)
    if "MAX_TEXT" in str(error):  # of a PNG, packed, as a bomb would be
        return MediaError(f"{source}: it holds too much text", "save it again without")
    kind = detect_file_type(data)
    if kind.is_image:
        # Pillow's text for a file that it does not know is the address of the buffer.
        detail = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else error
        return MediaError(f"{source}: damaged or cut short {kind.text} ({detail})", kind.hint)
    return MediaError(f"{source}: not an image: {kind.text}", kind.hint)
