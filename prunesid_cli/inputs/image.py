"""An image file -> `Media`: upright RGB pixels, a digest, and notes for the user.

The bytes are read once, so the digest names exactly what was decoded. Only regular files are opened. Every failure is a
`MediaError` that names the file and fails that one input. All functions are thread-safe.

Damage that a decoder replaces without an error (`loaders`) is noted, or refused if `Decoding.strict` says so. Damage in
WebP, AVIF, HEIC and JPEG 2000 mostly decodes to something, and no decoder detects it.

Embedded colour profiles (ICC) are not applied: the processors of the models call a plain `convert("RGB")`, so the
vision towers were trained on pictures read that way.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import time
import warnings
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs import tiff
from prunesid_cli.inputs.color_mode import SWAPS_SIDES, read_orientation, to_rgb
from prunesid_cli.inputs.decode_errors import (
    MAX_PIXELS,
    SMALLER_HINT,
    TGA_EXTENSIONS,
    camera_raw_error,
    explain_decode_error,
    too_many_pixels,
)
from prunesid_cli.inputs.decoding import DEFAULT_DECODING, READ_IN_PARTS, Decoding, TimedFile, picture_limit
from prunesid_cli.inputs.file_type import FileType, detect_file_type
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.loaders import LOADERS, psd_channels_left_out
from prunesid_cli.inputs.source import FileSource, to_media_error
from prunesid_cli.types import Provenance

MAX_BYTES = 1 << 30

# Formats that Pillow may decode. A list, because Pillow would also hand PostScript to ghostscript, and guess at formats
# without a signature.
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "QOI", "SGI",
    "PCX", "PSD",
)  # fmt: skip
DAMAGE_NOTE = "damaged {}, part of the picture may be wrong ({})"

# Notes for files with several pictures, in formats where they form a sequence. MPO is missing on purpose: its further
# pictures are the gain map or preview that a phone adds to a photograph.
SEQUENCE_NOTES = {
    "GIF": "animated, {} frames: the first is used",
    "PNG": "animated, {} frames: the first is used",
    "WEBP": "animated, {} frames: the first is used",
    "AVIF": "animated, {} frames: the first is used",
    "TIFF": "{} pages: the first is used",
    "HEIF": "{} pictures in the file: the main one is used",
    "PSD": "{} layers: the picture that is saved with them is used",
}
PSD_CHANNELS_NOTE = "number of further channels, such as transparency, that are left out: {}"
STRICT_HINT = "copy or download it again, or leave out --strict"

# Pillow warns on stderr about what is decided or noted here: pictures over 89 MP (`MAX_PIXELS` decides), odd EXIF, odd
# transparency. One filter, set at import and only for its modules: `warnings.catch_warnings` and a changed
# `Image.MAX_IMAGE_PIXELS` would both affect other threads in the middle of their work.
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
        """The image, or the first frame of a clip."""
        return self.frames[0]

    @property
    def is_clip(self) -> bool:
        """Whether it is a clip, and not an image."""
        return bool(self.times)


def media_from_image(image: Image.Image) -> Media:
    """Wrap an RGB image that comes from no file."""
    return media_from_frames((image,))


def media_from_frames(frames: tuple[Image.Image, ...], times: tuple[float, ...] = ()) -> Media:
    """Wrap RGB frames of one size that come from no file; with `times`, they are a clip."""
    return Media(source="", digest="", size=frames[0].size, notes=(), frames=frames, times=times)


def load_image(source: str | Path, files: FileSource = FILES, decoding: Decoding = DEFAULT_DECODING) -> Media:
    """Read and decode the image file with this path."""
    path = os.fspath(source)
    return load_image_bytes(read_bytes(path, files), path, decoding=decoding)


def read_bytes(path: str, files: FileSource = FILES) -> bytes:
    """Read a regular file of at most `MAX_BYTES`.

    Raises:
        MediaError: The file cannot be read, is too large, or is a folder, pipe or device.
    """
    try:
        status = files.stat(path)
        if not status.is_file:
            what = "a folder" if status.is_folder else "a pipe or device"
            if files.is_container(path) and status.is_folder:
                first = next(files.list(path), None)
                hint = f"name one, as {path}/{first.name}, or all of them: --each" if first else "name another file"
                raise MediaError(f"{path}: it holds several images", hint)
            each = ", or ask about each image in it: --each" if status.is_folder else ""
            hint = f"name an image; `-` reads one from stdin{each}"
            raise MediaError(f"{path}: {what}, not a regular file", hint)
        if status.size > MAX_BYTES:
            raise _too_many_bytes(path)
        with files.open(path) as file:
            return file.read()
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL in the name
        raise to_media_error(path, error, files) from error


def hash_bytes(data: bytes) -> str:
    """SHA-256 in hex, as `Media.digest` holds it."""
    return hashlib.sha256(data).hexdigest()


def load_image_bytes(
    data: bytes,
    source: str,
    digest: str = "",
    min_decode_side: int | None = None,
    decoding: Decoding = DEFAULT_DECODING,
) -> Media:
    """Decode an image that was read already.

    The time limit ends the decoding of a JPEG, and the count of frames of a GIF or pages of a TIFF. Other decoders can
    not be ended, but the work of those is bounded by `MAX_PIXELS`. An image that took longer than the limit is refused.

    Args:
        data: The contents of the file.
        source: Path of the file, for messages; "-" for stdin.
        digest: Result of `hash_bytes(data)`, if it is known already.
        min_decode_side: Allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep this
            number of pixels. That is faster than to decode it fully and shrink it, and nearly the same. None: never.
        decoding: Whether damage that the decoder paints over is refused, and the time limit.

    Raises:
        MediaError: The image is damaged, too large, not an image, or took too long.
    """
    if not data:
        raise MediaError(f"{source}: empty file", "copy or download it again")
    limit = picture_limit(decoding)
    deadline = time.monotonic() + (limit or math.inf)
    try:
        image, size, notes = _decode(data, source, min_decode_side, decoding.strict, deadline)
        if time.monotonic() > deadline:
            raise TimeoutError
    except MediaError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files, and if they cannot read on
        if time.monotonic() > deadline:
            raise MediaError(f"{source}: not decoded within {limit:g} s", "give it more time: --timeout 600") from error
        raise explain_decode_error(source, data, error) from error
    return Media(source=source, digest=digest or hash_bytes(data), size=size, notes=notes, frames=(image,))


def _decode(
    data: bytes, source: str, min_decode_side: int | None, strict: bool, deadline: float
) -> tuple[Image.Image, tuple[int, int], tuple[str, ...]]:
    """The upright image, its upright size in the file, and notes."""
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(source)
    file_type, formats, readable, damage = detect_file_type(data), _supported_formats(), data, ""
    if file_type is FileType.HEIC and "HEIF" not in formats:
        raise MediaError(f"{source}: HEIC images need a package that is not installed", "pip install pillow-heif")
    if file_type is FileType.CAMERA_RAW:
        raise camera_raw_error(source)
    if file_type is FileType.TIFF:
        readable = _prepare_tiff(data, source)
    elif file_type is FileType.UNKNOWN and os.path.splitext(source)[1].lower() in TGA_EXTENSIONS:
        formats = ("TGA",)
    stream = TimedFile(readable, deadline) if file_type in READ_IN_PARTS else BytesIO(readable)
    with Image.open(stream, formats=formats) as file:
        width, height = file.size
        if width * height > MAX_PIXELS:
            raise too_many_pixels(source, width, height)
        if min_decode_side is not None and file.format in ("JPEG", "MPO"):
            file.draft(None, (min_decode_side, min_decode_side))  # type: ignore[arg-type]
        scale = round(width / file.width)
        if load := LOADERS.get(file.format or ""):
            image, damage = load(file, data)
        else:
            file.load()
            image = file
        if damage and strict:
            raise MediaError(f"{source}: damaged {file_type.description} ({damage})", STRICT_HINT)
        rgb, color_note = to_rgb(image, data)
        transpose, orientation_note = read_orientation(file)
        frame_count = getattr(file, "n_frames", 1)  # may seek, so after the pixels were read
        left_out = psd_channels_left_out(file, data) if file.format == "PSD" else 0
        notes = (
            SEQUENCE_NOTES.get(file.format or "", "").format(frame_count) if frame_count > 1 else "",
            f"decoded at 1/{scale} of its size" if scale > 1 else "",
            color_note,
            PSD_CHANNELS_NOTE.format(left_out) if left_out else "",
            orientation_note,
            DAMAGE_NOTE.format(file_type.description, damage) if damage else "",
        )
    upright = rgb if transpose is None else rgb.transpose(transpose)
    size = upright.size  # not that of the header: loading may change it, for example in an ICO
    if scale > 1:
        size = (height, width) if transpose in SWAPS_SIDES else (width, height)
    return upright, size, tuple(note for note in notes if note)


def _prepare_tiff(data: bytes, source: str) -> bytes:
    """A TIFF that Pillow reads.

    Raises:
        MediaError: The first picture is not the one that a user means, or it is too large.
    """
    tags = tiff.read_tags(data)
    if kind := tiff.camera_raw_kind(data, tags, source):
        raise camera_raw_error(source, kind)
    if tiff.is_thumbnail(tags):
        raise MediaError(f"{source}: a TIFF that begins with a thumbnail", "save its full picture alone")
    width, height = tiff.first_value(tags, tiff.Tag.WIDTH, 0), tiff.first_value(tags, tiff.Tag.HEIGHT, 0)
    if width * height > MAX_PIXELS:
        raise too_many_pixels(source, width, height)
    return tiff.to_readable(data, tags)


@cache
def _supported_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow can open; Pillow raises KeyError for one that it does not know."""
    if find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _too_many_bytes(source: str) -> MediaError:
    return MediaError(f"{source}: larger than the limit of {MAX_BYTES >> 30} GiB for an image", SMALLER_HINT)
