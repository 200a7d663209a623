"""What a failed decoding of an image means: damage, an unsupported variant, camera raw, too many pixels."""

from __future__ import annotations

import math
import os
import re
import struct
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs import tiff
from prunesid_cli.inputs.file_type import RAW_EXTENSIONS, FileType, detect_file_type
from prunesid_cli.inputs.source import ERROR_TEXTS, to_media_error

MAX_PIXELS = 100_000_000  # about 400 MB once decoded: Pillow takes four bytes a pixel
PIXEL_LIMIT = f"more than the limit of {MAX_PIXELS // 10**6} megapixels"
SMALLER_HINT = "make the picture smaller"

# What decoders say about whole files that they do not support. Of a PSD, Pillow gives colour mode and depth: (3, 16).
UNSUPPORTED = re.compile(
    r"unsupported|not supported|cannot handle|not implemented|not configured|unknown (\w+ )?mode|unable to determine"
    r"|^\(\d+, \d+\)$",
    re.IGNORECASE,
)
TGA_EXTENSIONS = frozenset({".tga", ".icb", ".vda", ".vst"})
"""TGA has no signature. A file with one of these extensions is tried as TGA; Pillow checks its header."""
UNUSUAL_JPEG = re.compile(rb"\xff([\xc3\xc5-\xc7\xcb\xcd-\xcf\xf7])\0[\x0b\x11\x14]")
"""The frame header of a JPEG of 1, 3 or 4 colours that is lossless or hierarchical, or of a JPEG-LS."""
PPM_HEADER = re.compile(rb"P[1-6]\s(\s|#[^\n]*\n)*\d+\s+\d+\s")
HEIF_SIZE = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)
"""Width and height of a picture in a HEIC or AVIF file, or of a tile of one."""


def too_many_pixels(source: str, width: int, height: int) -> MediaError:
    """The error of a picture with more than `MAX_PIXELS`."""
    return MediaError(f"{source}: {width} x {height} pixels, {PIXEL_LIMIT}", SMALLER_HINT)


def camera_raw_error(source: str, kind: str = "") -> MediaError:
    """The error of a camera raw file. `kind` is its format or the maker of the camera, if it is known."""
    file_type = FileType.CAMERA_RAW
    return MediaError(f"{source}: {file_type.description}" + f" ({kind})" * bool(kind), file_type.hint)


def explain_decode_error(source: str, data: bytes, error: Exception) -> MediaError:
    """Turn whatever was raised while a file was decoded into an error that says what is wrong with the file."""
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, far above `MAX_PIXELS`
        pixels = re.search(r"\d+ pixels", str(error))
        return MediaError(
            f"{source}: {pixels[0]}, {PIXEL_LIMIT}" if pixels else f"{source}: {PIXEL_LIMIT}", SMALLER_HINT
        )
    if type(error) in ERROR_TEXTS:
        return to_media_error(source, error)
    if "MAX_TEXT" in str(error):  # Pillow's limit for the compressed text in a PNG, which may be a bomb
        return MediaError(f"{source}: it holds too much text", "save it again without the text")
    file_type, extension = detect_file_type(data), os.path.splitext(source)[1].lower()
    if file_type is FileType.UNKNOWN and extension in RAW_EXTENSIONS:
        return camera_raw_error(source, extension[1:].upper())
    if not file_type.is_image and PPM_HEADER.match(data):
        file_type = FileType.PPM
    elif (
        file_type is FileType.UNKNOWN and extension in TGA_EXTENSIONS and not isinstance(error, UnidentifiedImageError)
    ):
        file_type = FileType.TGA
    if not file_type.is_image:
        return MediaError(f"{source}: not an image: {file_type.description}", file_type.hint)
    if file_type in (FileType.AVIF, FileType.HEIC):
        sizes = [struct.unpack(">II", size) for size in HEIF_SIZE.findall(data)]
        width, height = max(sizes, key=math.prod, default=(0, 0))
        if width * height > MAX_PIXELS:
            return too_many_pixels(source, width, height)
    if variant := _find_variant(data, file_type, error):
        problem = f"{source}: {file_type.description} of a variant that is not decoded here ({variant})"
        return MediaError(problem, "convert it to PNG or JPEG first")
    # Pillow's message for an unidentified file is the address of the buffer.
    detail = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else error
    return MediaError(f"{source}: damaged or cut short {file_type.description} ({detail})", file_type.hint)


def _find_variant(data: bytes, file_type: FileType, error: Exception) -> str:
    """What an image that is not decoded holds, if it is whole but of an unsupported variant; empty if it is damaged."""
    if file_type is FileType.TIFF:
        if data.startswith(b"MM\0+"):
            return "64-bit positions in big-endian order"
        is_unsupported = isinstance(error, UnidentifiedImageError) or UNSUPPORTED.search(str(error))
        tags = tiff.read_tags(data) if is_unsupported else {}
        return tiff.describe(tags) if tags else ""
    if file_type is FileType.JPEG and (process := UNUSUAL_JPEG.search(data)):
        return f"coding process 0x{process[1].hex()}"
    reasons = [str(error)]
    if isinstance(error, UnidentifiedImageError) and file_type.name in Image.OPEN:
        try:
            Image.OPEN[file_type.name][0](BytesIO(data), "")
        except Exception as reason:  # nearly anything
            reasons.append(str(reason))
    unsupported = next((reason for reason in reasons if UNSUPPORTED.search(reason)), "")
    return re.sub(r"^\((\d+), (\d+)\)$", r"colour mode \1, \2 bits", unsupported)
