"""The type of a file, by its first bytes. Used for error messages, and to find out that a package is missing."""

from __future__ import annotations

import codecs
from enum import Enum

HEADER_BYTES = 1024
"""Number of bytes at the start of a file from which its type is detected."""
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
RAW_EXTENSIONS = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw"}
    | {".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)
"""Extensions of camera raw."""


class FileType(Enum):
    """Type of a file. Value: whether it is an image that can be decoded; what to call it; a hint if it is refused."""

    JPEG = True, "JPEG", "copy or download it again"
    PNG = True, "PNG", "copy or download it again"
    GIF = True, "GIF", "copy or download it again"
    WEBP = True, "WebP", "copy or download it again"
    TIFF = True, "TIFF", "copy or download it again"
    JPEG2000 = True, "JPEG 2000", "copy or download it again"
    HEIC = True, "HEIC", "copy or download it again"
    AVIF = True, "AVIF image", "copy it again; AVIF needs Pillow 11.3 or newer, or convert it to PNG"
    BMP = True, "BMP", "copy or download it again"
    ICO = True, "ICO", "copy or download it again"
    QOI = True, "QOI", "copy or download it again"
    PPM = True, "PPM", "copy or download it again"  # no signature that a text could not have: known by its header
    SGI = True, "SGI", "copy or download it again"
    PCX = True, "PCX", "copy or download it again"
    TGA = True, "TGA", "copy or download it again"  # has no signature: known by its name
    PSD = True, "PSD", "copy or download it again"
    CAMERA_RAW = False, "the file is camera raw", "convert it to JPEG or TIFF first, for example with darktable-cli"
    PDF = False, "the file is a PDF", "turn its pages into PNG images first"
    POSTSCRIPT = False, "the file is PostScript", "turn it into a PNG image first"
    FITS = False, "the file is a FITS image", "convert it to PNG or JPEG first"
    PHOTOSHOP = False, "the file is a large Photoshop document (PSB)", "export it as a PNG image first"
    ARCHIVE = False, "the file is an archive", "unpack it first"
    VIDEO = False, "the file is a video", "name its file: clips are not read from stdin"
    LFS = False, "the file is a Git LFS pointer", "fetch the real file with: git lfs pull"
    HTML = False, "the file is a web page", "the download went wrong: fetch it again"
    SVG = False, "the file is an SVG drawing", "turn it into a PNG image first"
    TEXT = False, "the file is text", "name an image or video file"
    UNKNOWN = False, "the file is of no known image format", "convert it to PNG or JPEG first"

    @property
    def is_image(self) -> bool:
        """Whether it is an image format that can be decoded."""
        return self.value[0]

    @property
    def description(self) -> str:
        """Name of the format; of a file that is no image, a clause such as "the file is a PDF"."""
        return self.value[1]

    @property
    def hint(self) -> str:
        """What to do if a file of this type was refused."""
        return self.value[2]


SIGNATURES = (
    (b"\xff\xd8\xff", FileType.JPEG),
    (b"\x89PNG\r\n\x1a\n", FileType.PNG),
    (b"GIF8", FileType.GIF),
    (b"\0\0\x01\0", FileType.ICO),
    (b"qoif", FileType.QOI),
    *((bytes([1, 0xDA, packed, size]), FileType.SGI) for packed in (0, 1) for size in (1, 2)),
    *((bytes([10, version, 1]), FileType.PCX) for version in (0, 2, 3, 4, 5)),
    (b"IIU\0", FileType.CAMERA_RAW),  # RW2
    (b"IIRO", FileType.CAMERA_RAW),  # ORF
    (b"IIRS", FileType.CAMERA_RAW),
    (b"MMOR", FileType.CAMERA_RAW),
    (b"FUJIFILMCCD-RAW", FileType.CAMERA_RAW),  # RAF
    (b"FOVb", FileType.CAMERA_RAW),  # X3F
    (b"\0MRM", FileType.CAMERA_RAW),  # MRW
    (b"II\x1a\0\0\0HEAPCCDR", FileType.CAMERA_RAW),  # CRW
    (b"II*\0", FileType.TIFF),
    (b"MM\0*", FileType.TIFF),
    (b"II+\0", FileType.TIFF),  # with positions of 64 bits
    (b"MM\0+", FileType.TIFF),
    (b"\0\0\0\x0cjP  ", FileType.JPEG2000),
    (b"\xffO\xffQ", FileType.JPEG2000),  # without a container
    (b"BM", FileType.BMP),
    (b"SIMPLE  =", FileType.FITS),
    (b"%PDF", FileType.PDF),
    (b"%!PS", FileType.POSTSCRIPT),
    (b"8BPS\0\x01", FileType.PSD),
    (b"8BPS", FileType.PHOTOSHOP),
    (b"PK\x03\x04", FileType.ARCHIVE),
    (b"\x1f\x8b", FileType.ARCHIVE),
    (b"\x1aE\xdf\xa3", FileType.VIDEO),  # Matroska and WebM
    (b"FLV\x01", FileType.VIDEO),
    (b"0&\xb2u\x8ef\xcf\x11", FileType.VIDEO),  # ASF: WMV
    (b"\0\0\x01\xba", FileType.VIDEO),  # MPEG program stream
    (b"\0\0\x01\xb3", FileType.VIDEO),
    (b"version https://git-lfs", FileType.LFS),
)
RIFF_TYPES = {b"WEBP": FileType.WEBP, b"AVI ": FileType.VIDEO}
BRANDS = (
    dict.fromkeys(HEIF_BRANDS, FileType.HEIC)
    | dict.fromkeys(AVIF_BRANDS, FileType.AVIF)
    | {b"crx ": FileType.CAMERA_RAW}
)
QUICKTIME_BOXES = frozenset({b"moov", b"mdat", b"wide"})
"""First boxes of QuickTime files that have no brand."""
CONTROL_CHARACTERS = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")
"""Bytes that text does not have."""
MARKUP = (("<svg", FileType.SVG), ("<!doctype html", FileType.HTML), ("<html", FileType.HTML))


def detect_file_type(data: bytes) -> FileType:
    """Detect the type of a file from its first `HEADER_BYTES` bytes, or from all of it."""
    header = bytes(data[:HEADER_BYTES])
    if header[:4] == b"RIFF":
        return RIFF_TYPES.get(header[8:12], FileType.UNKNOWN)
    if header[4:8] in QUICKTIME_BOXES:
        return FileType.VIDEO
    if header[4:8] == b"ftyp":
        return BRANDS.get(header[8:12], FileType.VIDEO)
    if header[:4] == b"II*\0" and header[8:11] == b"CR\2":  # CR2; other raw TIFF files are known by their tags
        return FileType.CAMERA_RAW
    for signature, file_type in SIGNATURES:
        if header.startswith(signature):
            return file_type
    return _detect_text_type(header)


def is_text(header: bytes) -> bool:
    """Whether a file is text: in UTF-8, in UTF-16 with a byte order mark, or in an encoding of one byte a character.

    Args:
        header: Its first `HEADER_BYTES` bytes. An empty file is no text.
    """
    if header.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    num_ascii = sum(byte < 0x80 for byte in header)
    has_control_characters = bool(CONTROL_CHARACTERS.intersection(header))
    is_one_byte_text = not has_control_characters and num_ascii > len(header) // 2
    return bool(header) and (is_one_byte_text or _detect_text_type(header) is not FileType.UNKNOWN)


def _detect_text_type(header: bytes) -> FileType:
    text = header.decode("utf-8", errors="ignore")  # a character may be cut at the end of the header
    if len(text.encode()) < len(header) - 3 or CONTROL_CHARACTERS.intersection(header):
        return FileType.UNKNOWN
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith("<?xml"):
        return FileType.SVG if "<svg" in start else FileType.TEXT
    return next((file_type for tag, file_type in MARKUP if start.startswith(tag)), FileType.TEXT)
