"""Images of every kind are decoded to the right pixels; all other files give an error that says what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs import image as image_module
from prunesid_cli.inputs.file_type import FileType, detect_file_type
from prunesid_cli.inputs.image import Media, load_image, load_image_bytes
from tests import hostile

WHITE = (255, 255, 255)

# pytest replaces the loader's warning filter by its own; `test_nothing_is_printed` checks that in a process.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def loaded(data: bytes) -> Media:
    result = load_image_bytes(data, "x")
    assert result.image.mode == "RGB"
    assert result.size == result.image.size
    return result


def refusal(data: bytes) -> MediaError:
    with pytest.raises(MediaError) as caught:
        load_image_bytes(data, "some/name.jpg")
    assert caught.value.problem.startswith("some/name.jpg: ")
    assert caught.value.hint
    return caught.value


def row(result: Media) -> list[Any]:
    return [result.image.getpixel((x, 0)) for x in range(result.size[0])]


def assert_upright(image: Image.Image, tolerance: int = 40) -> None:
    assert image.size == (96, 64)
    for name, seen in hostile.corners(image).items():
        assert np.abs(np.subtract(seen, hostile.CORNERS[name])).max() <= tolerance, name


# Reading


def test_media_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(hostile.encoded(hostile.landmark(), "PNG"))
    result = load_image(path)
    assert result == load_image(str(path))
    assert result.source == str(path)
    assert result.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (result.size, result.notes) == ((96, 64), ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.source = "b"  # type: ignore[misc]


def test_bytes_from_stdin_are_named_by_a_dash() -> None:
    assert load_image_bytes(hostile.encoded(hostile.landmark(), "PNG"), "-").source == "-"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a", "UPPER.JPG", "a.txt", "ünï 图.webp", "-dash.png", "a\nb.png"])
def test_name_does_not_matter(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(hostile.encoded(hostile.landmark(), "PNG"))
    assert_upright(load_image(path).image)


def test_undecodable_name(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    try:
        Path(name).write_bytes(hostile.encoded(hostile.landmark(), "PNG"))
    except OSError:
        pytest.skip("this file system takes only names that are text")
    assert load_image(name).source == name


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_formats(format: str) -> None:
    Image.init()
    if format == "AVIF" and "AVIF" not in Image.OPEN:
        pytest.skip("this Pillow has no AVIF")
    result = loaded(hostile.encoded(hostile.landmark(), format))
    assert_upright(result.image)
    assert result.notes == ()


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert loaded(hostile.encoded(Image.new("RGB", size, hostile.BLUE), "PNG")).size == size


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", hostile.STORED)
def test_orientation(format: str, orientation: int) -> None:
    assert_upright(loaded(hostile.turned(orientation, format)).image)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_undefined_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_upright(loaded(hostile.encoded(hostile.landmark(), "PNG", exif=exif)).image)


def test_unreadable_exif_gives_a_note_and_the_image() -> None:
    result = loaded(hostile.encoded(hostile.landmark(), "PNG", exif=b"Exif\0\0XX*\0 not a TIFF header"))
    assert_upright(result.image)
    assert result.notes == ("unreadable EXIF: the picture may be turned",)


# Colour modes


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG"), ("RGBA", "TIFF")])
def test_transparency_is_composited_on_white(mode: str, format: str) -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 8, 16))
    result = loaded(hostile.encoded(clear.convert(mode), format, **({"lossless": True} if format == "WEBP" else {})))
    assert result.image.getpixel((2, 8)) == (0, 0, 0)
    assert result.image.getpixel((13, 8)) == WHITE
    assert result.notes == ("transparency composited on white",)


def test_half_transparency_is_half_white() -> None:
    result = loaded(hostile.encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))
    assert result.image.getpixel((0, 0)) == (255, 127, 127)


def test_opaque_alpha_gives_no_note() -> None:
    result = loaded(hostile.encoded(hostile.landmark().convert("RGBA"), "PNG"))
    assert_upright(result.image)
    assert result.notes == ()


@pytest.mark.parametrize(("transparency", "expected"), [(1, WHITE), (bytes([255, 128]), (127, 127, 255))])
def test_palette_with_alpha(transparency: int | bytes, expected: tuple[int, int, int]) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    result = loaded(hostile.encoded(image, "PNG", transparency=transparency))
    assert row(result) == [hostile.RED, expected]
    assert result.notes == ("transparency composited on white",)


def test_palette_bilevel_and_grey() -> None:
    assert_upright(loaded(hostile.encoded(hostile.landmark().quantize(4), "PNG")).image)
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    assert row(loaded(hostile.encoded(bilevel, "PNG"))) == [(0, 0, 0), WHITE]
    assert row(loaded(hostile.encoded(Image.new("L", (1, 1), 77), "PNG"))) == [(77, 77, 77)]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format: str) -> None:
    result = loaded(hostile.encoded(hostile.landmark().convert("CMYK"), format))
    assert_upright(result.image)
    assert result.notes == ("CMYK converted without a colour profile",)


def test_lab() -> None:
    assert_upright(loaded(hostile.encoded(hostile.landmark().convert("LAB"), "TIFF")).image)


SIXTEEN_BIT = [0, 255, 256, 0x8000, 0xFFFF]


@pytest.mark.parametrize(
    "data",
    [
        hostile.grey16(SIXTEEN_BIT),
        hostile.row_tiff(SIXTEEN_BIT, np.uint16),
        hostile.row_tiff(SIXTEEN_BIT, np.uint16, ">"),
        b"P5 5 1 65535\n" + struct.pack(">5H", *SIXTEEN_BIT),
    ],
    ids=["png", "tiff little-endian", "tiff big-endian", "pgm"],
)
def test_16_bit_grey_keeps_its_high_byte(data: bytes) -> None:
    result = loaded(data)
    assert row(result) == [(value >> 8,) * 3 for value in SIXTEEN_BIT]
    assert result.notes == ("16-bit grey scaled to 8",)


def test_16_bit_grey_with_a_clear_value() -> None:
    result = loaded(hostile.grey16([0, 0x8000], (b"tRNS", struct.pack(">H", 0))))
    assert row(result) == [WHITE, (128, 128, 128)]
    assert "transparency composited on white" in result.notes[0]


def test_16_bit_rgb() -> None:
    assert row(loaded(hostile.rgb16(0x8000, 0xFFFF, 0x00FF))) == [(128, 255, 0)]


SCALED = [
    ([0, 50_000, 100_000], np.int32, [0, 128, 255], "32-bit grey scaled from 0..100000 to 0..255"),
    ([-(2**31), 0, 2**31 - 1], np.int32, [0, 128, 255], "-2147483648..2147483647"),
    ([7, 7, 7], np.int32, [0, 0, 0], "7..7"),
    ([0.0, 0.5, 1.0], np.float32, [0, 128, 255], "float grey scaled from 0..1 to 0..255"),
    ([0.0, 0.1, 0.2], np.float32, [0, 26, 51], "0..1"),  # a dark picture stays dark
    ([-10.0, 0.0, 10.0], np.float32, [0, 128, 255], "-10..10"),
    ([np.nan, 5.0, 10.0, np.inf, -np.inf], np.float32, [0, 0, 255, 255, 0], "5..10"),
    ([np.nan, np.nan], np.float32, [0, 0], "0..1"),
]


@pytest.mark.parametrize(("values", "kind", "expected", "note"), SCALED)
def test_integers_and_floats_are_scaled(values: list[Any], kind: Any, expected: list[int], note: str) -> None:
    result = loaded(hostile.row_tiff(values, kind))
    assert row(result) == [(value,) * 3 for value in expected]
    assert note in result.notes[0]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animated(format: str) -> None:
    result = loaded(hostile.animated(format))
    assert_upright(result.image)
    assert result.notes == ("animated, 3 frames: the first is used",)


def test_pages_are_not_frames() -> None:
    result = loaded(hostile.animated("TIFF"))
    assert_upright(result.image)
    assert result.notes == ("3 pages: the first is used",)


def test_the_second_picture_of_a_phone_gives_no_note() -> None:
    result = loaded(hostile.animated("MPO", 2))
    assert_upright(result.image)
    assert result.notes == ()


# Refused files

NOT_IMAGES = [
    (b"", "empty file"),
    (b"hello " * 100, "not an image: the file is text"),
    (b"x" + ("ä" * 1000).encode(), "not an image: the file is text"),
    (b"<!DOCTYPE html><html>404</html>", "not an image: the file is a web page"),
    (b"\n  <HTML>", "not an image: the file is a web page"),
    (b'<?xml version="1.0"?><svg/>', "not an image: the file is an SVG drawing"),
    (b"%PDF-1.7\n" + b"x" * 500, "not an image: the file is a PDF"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: the file is PostScript"),
    (b"version https://git-lfs.github.com/spec/v1\n", "not an image: the file is a Git LFS pointer"),
    (b"PK\x03\x04" + bytes(100), "not an image: the file is an archive"),
    (hostile.ftyp(b"isom"), "not an image: the file is a video"),
    (b"RIFF\0\0\0\0AVI " + bytes(100), "not an image: the file is a video"),
    (bytes(1000), "not an image: the file is of no known image format"),
    (np.random.default_rng(0).bytes(5000), "not an image: the file is of no known image format"),
]


@pytest.mark.parametrize(("data", "expected"), NOT_IMAGES, ids=range(len(NOT_IMAGES)))
def test_other_files_are_named_in_the_error(data: bytes, expected: str) -> None:
    assert expected in refusal(data).problem


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize(
    ("format", "file_type"),
    [
        ("JPEG", FileType.JPEG),
        ("PNG", FileType.PNG),
        ("WEBP", FileType.WEBP),
        ("TIFF", FileType.TIFF),
        ("GIF", FileType.GIF),
    ],
)
def test_truncated(format: str, file_type: FileType, share: float) -> None:
    data = hostile.encoded(hostile.noise(), format)
    error = refusal(data[: int(len(data) * share)])
    assert f"damaged or cut short {file_type.description} (" in error.problem
    assert error.__cause__ is not None


def test_progressive_jpeg_without_its_last_bytes() -> None:
    data = hostile.encoded(hostile.noise(), "JPEG", progressive=True)
    assert "cut short JPEG" in refusal(data[:-2]).problem


def test_a_flipped_bit_is_an_error() -> None:
    data = bytearray(hostile.encoded(hostile.noise(), "PNG"))
    data[len(data) // 2] ^= 0x55
    assert "damaged or cut short PNG" in refusal(bytes(data)).problem


@pytest.mark.parametrize("size", [(15_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        raise AssertionError("the bomb was unpacked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert re.search(r"\d+ pixels, more than the limit of 100 megapixels", refusal(hostile.claim(*size)).problem)


def test_a_decompression_bomb_takes_no_memory() -> None:
    """150 million pixels in about 20 kB; the growth of a process shows whether they were unpacked."""
    pytest.importorskip("resource")
    script = (
        "import sys, resource\n"
        "from prunesid_cli.inputs.image import load_image_bytes\n"
        "from prunesid_cli.errors import MediaError\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    load_image_bytes(data, '-')\n"
        "except MediaError as error:\n    print(error.problem)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = run_python(script, hostile.bomb(15_000, 10_000))
    problem, growth = done.stdout.decode().splitlines()
    assert problem == "-: 15000 x 10000 pixels, more than the limit of 100 megapixels"
    assert int(growth) < 50 * 1024 * (1024 if sys.platform == "darwin" else 1)


def test_the_limit_itself_is_allowed() -> None:
    assert "cut short PNG" in refusal(hostile.claim(10_000, 10_000)).problem


def test_text_bomb_is_refused() -> None:
    assert "too much text" in refusal(hostile.text_bomb()).problem


def test_nothing_is_printed() -> None:
    """Pillow warns about images over 89 megapixels, and much else; only the caller prints."""
    script = (
        "import sys\n"
        "from prunesid_cli.inputs.image import load_image_bytes\n"
        "from prunesid_cli.errors import MediaError\n"
        "try:\n    load_image_bytes(sys.stdin.buffer.read(), '-')\n"
        "except MediaError:\n    pass\n"
    )
    transparent = hostile.encoded(hostile.landmark().quantize(4), "PNG", transparency=bytes([0, 9]))
    for data in (
        hostile.claim(9_500, 10_000),
        hostile.claim(15_000, 10_000),
        transparent,
        b"II*\0" + bytes(90),
    ):
        done = run_python(script, data)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def run_python(script: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    root = str(Path(image_module.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=60, check=False)


def test_missing_file_folder_and_bad_names(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    cases = {
        "missing.jpg": "no such file",
        "file/below.jpg": "no such file",
        "folder.jpg": "a folder, not a regular file",
        "n" * 300: "File name too long",
        "nul\0.jpg": "nul",
    }
    for name, expected in cases.items():
        with pytest.raises(MediaError) as caught:
            load_image(tmp_path / name)
        assert expected.lower() in caught.value.problem.lower()
        assert caught.value.problem.startswith(str(tmp_path / name))
        assert caught.value.__cause__ is not None or name == "folder.jpg"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(MediaError, match="a pipe or device"):
        load_image(tmp_path / "pipe.jpg")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device here")
def test_device_is_not_read() -> None:
    with pytest.raises(MediaError, match="a pipe or device"):
        load_image("/dev/zero")


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with open(path, "wb") as file:
        file.truncate(image_module.MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(MediaError, match="1 GiB"):
        load_image(path)


@contextmanager
def not_root() -> Iterator[None]:
    """Root may read everything, so become another user within the block."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions here")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with not_root(), pytest.raises(MediaError, match="no permission"):
        load_image(path)


def test_heic_without_its_package_says_what_to_install() -> None:
    """In a process of its own, because the formats that can be read are looked up once per process."""
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from prunesid_cli.errors import MediaError; from prunesid_cli.inputs.image import load_image_bytes\n"
        "try: load_image_bytes(sys.stdin.buffer.read(), 'x')\n"
        "except MediaError as error: print(error.problem, error.hint, sep='; ')\n"
    )
    for brand in (b"heic", b"mif1"):
        ran = subprocess.run([sys.executable, "-c", code], input=hostile.ftyp(brand), capture_output=True, check=True)
        assert ran.stdout.decode() == "x: HEIC images need a package that is not installed; pip install pillow-heif\n"


def test_heic_with_its_package() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    assert_upright(loaded(hostile.encoded(hostile.landmark(), "HEIF", quality=95)).image)
    assert "damaged or cut short HEIC" in refusal(hostile.ftyp(b"heic")).problem


def test_out_of_memory_fails_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert "not enough memory" in refusal(hostile.encoded(hostile.landmark(), "BMP")).problem


# Side effects


def test_settings_of_pillow_do_not_change() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    refusal(hostile.claim(20_000, 20_000))
    loaded(hostile.encoded(hostile.landmark(), "JPEG"))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before == (before[0], False)


def test_threads_do_not_affect_each_other() -> None:
    images = [hostile.turned(orientation, "JPEG") for orientation in hostile.STORED] + [hostile.animated("GIF")]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(loaded, images * 4))
    assert results == [loaded(data) for data in images * 4]


@pytest.mark.parametrize("file_type", FileType)
def test_every_file_type_has_a_hint(file_type: FileType) -> None:
    assert file_type.description and file_type.hint


@pytest.mark.parametrize("data", [b"", b"R", b"RIFF", b"\0\0\0\x18ftyp", b"\xff", zlib.compress(b"x")])
def test_short_headers_have_a_type(data: bytes) -> None:
    assert not detect_file_type(data).is_image
