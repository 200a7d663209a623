"""Damage that a decoder paints over is noted, and refused with --strict. Pictures that take too long are refused."""

from __future__ import annotations

import os
import struct
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prunesid_cli
from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.inputs.decoding import Decoding
from prunesid_cli.inputs.image import load_image_bytes
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_SAMPLING
from prunesid_cli.inputs.video.load import load_media
from prunesid_cli.runtime.captured_stderr import captured_stderr
from prunesid_cli.tokencache import open_cache
from tests import hostile
from tests.cli.processes import prunesid, stderr_on_terminal
from tests.conftest import Run
from tests.films import film

STRICT = Decoding(strict=True)


def photo(width: int = 320, height: int = 240) -> Image.Image:
    """Smooth, with some detail: compressed, it is neither tiny nor all detail."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 7 % 256], axis=2)
    pixels += np.random.default_rng(0).integers(0, 20, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(**options: object) -> bytes:
    return hostile.encoded(photo(), "JPEG", **options)


def damaged(data: bytes, kind: str) -> bytes:
    """Damages the pixels of a JPEG behind its middle, and keeps its end."""
    middle = len(data) * 5 // 9
    if kind == "zeroed":
        return data[:middle] + bytes(len(data) // 5) + data[middle + len(data) // 5 :]
    if kind == "missing":
        return data[:middle] + data[middle + len(data) // 5 :]
    assert kind == "cut, with an end marker"
    return data[:middle] + b"\xff\xd9"


DAMAGE = ("zeroed", "missing", "cut, with an end marker")
JPEG_OPTIONS = [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"restart_marker_blocks": 8}]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("options", JPEG_OPTIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_damage_inside_a_jpeg_is_noted_or_refused(mode: str, options: dict[str, object], kind: str) -> None:
    data = damaged(hostile.encoded(photo().convert(mode), "JPEG", **options), kind)
    (note,) = load_image_bytes(data, "x").notes
    assert note.startswith("damaged JPEG, part of the picture may be wrong (")
    with pytest.raises(MediaError) as caught:
        load_image_bytes(data, "a.jpg", decoding=STRICT)
    assert caught.value.problem.startswith("a.jpg: damaged JPEG (")
    assert caught.value.hint == "copy or download it again, or leave out --strict"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(320, 240), (333, 211), (17, 23), (1, 1), (64, 1)])
@pytest.mark.parametrize("options", [*JPEG_OPTIONS, {"subsampling": 1}, {"keep_rgb": True}])
def test_a_jpeg_has_the_pixels_that_pillow_reads(mode: str, size: tuple[int, int], options: dict[str, object]) -> None:
    if mode != "RGB":
        options = options | {"keep_rgb": False}
    data = hostile.encoded(photo(*size).convert(mode), "JPEG", **options)
    with Image.open(BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(load_image_bytes(data, "a.jpg").image, expected)


def test_damage_is_found_at_a_reduced_size_too() -> None:
    notes = load_image_bytes(damaged(jpeg(), "zeroed"), "x", "", 30).notes
    assert notes[0] == "decoded at 1/8 of its size"
    assert notes[1].startswith("damaged JPEG")


@pytest.mark.parametrize("options", [*JPEG_OPTIONS, {"quality": 1}, {"quality": 100}, {"subsampling": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("size", [(320, 240), (1, 1), (17, 33)])
def test_valid_jpegs_are_not_called_damaged(size: tuple[int, int], mode: str, options: dict[str, object]) -> None:
    data = hostile.encoded(photo(*size).convert(mode), "JPEG", **options)
    for whole in (data, data + bytes(100), data + b"trailing \xff\xd8\xff", data[:-2] + b"\xff\xff\0\0\0" + data[-2:]):
        notes = load_image_bytes(whole, "x", decoding=STRICT).notes
        assert notes == (("CMYK converted without a colour profile",) if mode == "CMYK" else ())


def test_other_valid_jpegs_are_not_called_damaged() -> None:
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07"  # libjpeg warns about this value of the transform
    unknown_transform = jpeg()[:2] + adobe + jpeg()[2:]
    for data in (hostile.animated("MPO", 2), hostile.turned(6, "JPEG"), jpeg(comment=b"\xff\xd9"), unknown_transform):
        assert load_image_bytes(data, "x", decoding=STRICT).notes == ()


def fax(compression: str) -> bytes:
    """A two-level TIFF in which twelve bytes in the middle are damaged."""
    data = bytearray(hostile.encoded(photo().convert("1"), "TIFF", compression=compression))
    strip = Image.open(BytesIO(data)).tag_v2[273][0]  # type: ignore[attr-defined]
    data[strip + 400 : strip + 412] = bytes([0, 255] * 6)
    return bytes(data)


@pytest.mark.parametrize("compression", ["group4", "group3"])
def test_damage_inside_a_fax_is_noted_or_refused(compression: str) -> None:
    with captured_stderr() as printed:
        pass
    assert printed == []
    (note,) = load_image_bytes(fax(compression), "x").notes
    assert note.startswith("damaged TIFF, part of the picture may be wrong (Fax")
    with pytest.raises(MediaError, match="damaged TIFF \\(Fax"):
        load_image_bytes(fax(compression), "x", decoding=STRICT)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "tiff_lzw", "packbits", "jpeg", "raw"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_valid_tiffs_are_not_called_damaged(mode: str, compression: str) -> None:
    if mode != "1" and compression in ("group3", "group4", "tiff_ccitt") or (mode, compression) == ("1", "jpeg"):
        pytest.skip("there is no such TIFF")
    data = hostile.encoded(photo().convert(mode), "TIFF", compression=compression)
    assert load_image_bytes(data, "x", decoding=STRICT).notes == ()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_damage_inside_a_tiff_with_jpeg_compression_is_noted(mode: str) -> None:
    data = bytearray(hostile.encoded(photo().convert(mode), "TIFF", compression="jpeg"))
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    (note,) = load_image_bytes(bytes(data), "x").notes
    assert note.startswith("damaged TIFF, part of the picture may be wrong (Corrupt JPEG data")


# What C libraries print


def test_what_is_written_to_the_descriptor_is_caught() -> None:
    with captured_stderr() as lines:
        os.write(2, b"one\ntwo \xff\n")
    assert lines == ["one", "two \N{REPLACEMENT CHARACTER}"]


@pytest.mark.slow
def test_the_command_prints_one_line_for_each_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "fax.tif").write_bytes(fax("group4"))
    (tmp_path / "webp.tif").write_bytes(hostile.tiff(bytes(20), {256: 2, 257: 2, 258: 8, 259: 50001}))
    done = prunesid("compress", tmp_path, "-m", "demo", "--fit", "pad", "--out", tmp_path / "c", "-q")
    assert (done.returncode, done.stdout) == (3, "")
    problem = "TIFF of a variant that is not decoded here (1 sample of 8 bits, compression WebP)"
    assert done.stderr == f"error: {tmp_path / 'webp.tif'}: {problem}\nhint: convert it to PNG or JPEG first\n"
    (item,) = (item for _, item in open_cache(tmp_path / "c").items())
    assert item.notes[0].startswith("damaged TIFF")


@pytest.mark.slow
def test_a_progress_bar_is_not_caught(tmp_path: Path) -> None:
    """It is drawn while threads decode pictures whose decoder writes to the same descriptor."""
    for number in range(20):
        (tmp_path / f"{number}.tif").write_bytes(fax("group4") + bytes([number]))
    code, _, shown = stderr_on_terminal("compress", tmp_path, "-m", "demo", "--out", tmp_path / "c")
    assert code == 0, shown
    assert "compressing" in shown
    words = "".join(shown.split())  # the terminal wraps lines
    assert words.count("damagedTIFF,partofthepicturemaybewrong(Fax4Decode:") == 20 == words.count("Fax4Decode:")


def test_strict_costs_the_damaged_inputs_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(damaged(jpeg(), "zeroed"))
    (tmp_path / "good.jpg").write_bytes(jpeg())
    for options, code, kept in ((), 0, ["bad.jpg", "good.jpg"]), (["--strict"], 3, ["good.jpg"]):
        cache = tmp_path / f"c{code}"
        done = run("compress", tmp_path / "bad.jpg", tmp_path / "good.jpg", "-m", "demo", "--out", cache, *options)
        assert done.code == code
        assert "damaged JPEG" in done.err
        assert [Path(item.source).name for _, item in open_cache(cache).items()] == kept
    done = run("ask", tmp_path / "bad.jpg", "what is shown?", "-m", "demo", "--strict")
    assert (done.code, done.out) == (1, "")
    assert "bad.jpg: damaged JPEG" in done.err


# The time limit


def test_a_jpeg_of_many_scans_is_ended_soon_after_the_limit() -> None:
    """Decoding it takes some 10 seconds."""
    data = hostile.many_scans(2000, 4000)
    start = time.monotonic()
    with pytest.raises(MediaError) as caught:
        load_image_bytes(data, "a.jpg", decoding=Decoding(limit=0.5))
    assert (caught.value.problem, caught.value.hint) == (
        "a.jpg: not decoded within 0.5 s",
        "give it more time: --timeout 600",
    )
    assert time.monotonic() - start < 3


def test_counting_the_pages_of_a_tiff_has_the_limit() -> None:
    """Reading all of them takes some 30 seconds."""
    page = hostile.tiff(bytes(4), {256: 2, 257: 2, 258: 8})
    tags, end = page[8 + 4 : -4], len(page)
    pages = [page[:-4]]
    for _ in range(50_000):
        pages.append(struct.pack("<I", end) + tags)
        end += len(tags) + 4
    with pytest.raises(MediaError, match="not decoded within 0.5 s"):
        load_image_bytes(b"".join(pages) + bytes(4), "x", decoding=Decoding(limit=0.5))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_every_format_has_the_limit(format: str) -> None:
    data = hostile.encoded(photo(), format)
    assert load_image_bytes(data, "x", decoding=Decoding(limit=0)).size == (320, 240)
    with pytest.raises(MediaError, match="not decoded within 1e-09 s"):
        load_image_bytes(data, "x", decoding=Decoding(limit=1e-9))


def test_the_run_goes_on_after_the_limit(run: Run, tmp_path: Path) -> None:
    (tmp_path / "slow.jpg").write_bytes(hostile.many_scans(2000, 4000))
    (tmp_path / "good.jpg").write_bytes(jpeg())
    done = run("compress", tmp_path, "-m", "demo", "--out", tmp_path / "c", "--timeout", 1)
    assert done.code == 3
    assert f"error: {tmp_path / 'slow.jpg'}: not decoded within 1 s" in done.err
    assert [item.size for _, item in open_cache(tmp_path / "c").items()] == [(320, 240)]


@pytest.mark.parametrize("limit", ["-1", "nan", "inf"])
def test_a_limit_is_a_number_of_seconds(run: Run, tmp_path: Path, limit: str) -> None:
    done = run("compress", tmp_path, "--out", tmp_path / "c", "--timeout", limit)
    assert (done.code, done.err) == (2, f"error: --timeout {limit} is not a time\nhint: seconds: 60; 0 is no limit\n")


def test_clips_have_the_limit(tmp_path: Path) -> None:
    path = str(film(tmp_path / "a.mp4", 3))
    with pytest.raises(MediaError, match="a.mp4: not decoded within 0.001 s"):
        load_media(path, DEFAULT_SAMPLING, Decoding(limit=0.001))
    assert len(load_media(path, DEFAULT_SAMPLING, Decoding(limit=0)).frames) == 3


def test_settings_of_the_python_api(tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(damaged(jpeg(), "zeroed"))
    assert prunesid_cli.load("demo").encode(path)
    with pytest.raises(MediaError, match="damaged JPEG"):
        prunesid_cli.load("demo", strict=True).encode(path)
    with pytest.raises(MediaError, match="not decoded within"):
        prunesid_cli.load("demo", timeout=1e-9).encode(path)
    with pytest.raises(UsageError, match="--timeout -1 is not a time"):
        prunesid_cli.load("demo", timeout=-1)
