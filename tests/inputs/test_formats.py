"""Formats: camera raw and unsupported variants are refused by name; TGA, SGI, PCX and PSD are read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.image import Media, load_image_bytes
from prunesid_cli.inputs.listing import Listing
from prunesid_cli.inputs.video.load import is_clip_file
from tests import hostile

RAW_HINT = "convert it to JPEG or TIFF first, for example with darktable-cli"
LEFT_OUT = "number of further channels, such as transparency, that are left out: {}"
VARIANT_HINT = "convert it to PNG or JPEG first"
THUMBNAIL = {256: 4, 257: 3, 258: 8, 277: 3, 262: 2, 254: 1}
PIXELS = bytes(4 * 3 * 3)


def refusal(data: bytes, name: str = "x") -> tuple[str, str]:
    with pytest.raises(MediaError) as caught:
        load_image_bytes(data, name)
    assert caught.value.problem.startswith(f"{name}: ")
    return caught.value.problem.removeprefix(f"{name}: "), caught.value.hint


# Camera raw


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("tags", "name", "kind"),
    [
        (THUMBNAIL | {330: 8, 50706: 0x401}, "a.tif", "DNG"),
        (THUMBNAIL | {330: 8, 50706: 0x401}, "a.dng", "DNG"),
        (THUMBNAIL | {330: 8}, "a.NEF", "NEF"),
        (THUMBNAIL | {330: 8}, "a.jpg", "TIFF"),
        (THUMBNAIL, "a.arw", "ARW"),
        (THUMBNAIL | {262: 32803, 277: 1, 254: 0}, "a.tif", "TIFF with a colour filter array"),
        (THUMBNAIL | {262: 34892, 254: 0}, "a.tif", "TIFF with linear raw"),
        (THUMBNAIL | {259: 65535, 254: 0}, "a.tif", "TIFF"),
    ],
)
def test_camera_raw_in_a_tiff_is_refused_by_name(tags: dict[int, int], name: str, kind: str, order: str) -> None:
    assert refusal(hostile.tiff(PIXELS, tags, order), name) == (f"the file is camera raw ({kind})", RAW_HINT)


@pytest.mark.parametrize(
    "data",
    [
        b"II*\0\x10\0\0\0CR\2\0" + bytes(100),
        b"II*\0\x44\0\0\0CR\2\0" + bytes(100),
        b"IIRO\x08\0\0\0" + bytes(100),
        b"IIU\0\x18\0\0\0" + bytes(100),
        b"FUJIFILMCCD-RAW 0201" + bytes(100),
        b"FOVb" + bytes(100),
        hostile.ftyp(b"crx "),
    ],
    ids=["CR2", "CR2 with tags further on", "ORF", "RW2", "RAF", "X3F", "CR3"],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.mp4"])
def test_camera_raw_is_known_by_its_first_bytes(data: bytes, name: str, tmp_path: Path) -> None:
    assert refusal(data, name) == ("the file is camera raw", RAW_HINT)
    (tmp_path / name).write_bytes(data)
    assert not is_clip_file(str(tmp_path / name))


def test_a_file_of_unknown_contents_is_camera_raw_by_its_name() -> None:
    assert refusal(bytes(3000), "a.DCR") == ("the file is camera raw (DCR)", RAW_HINT)


@pytest.mark.parametrize("sub_tags", [{262: 32803, 277: 1}, {262: 34892}, {259: 34713}])
def test_sensor_values_below_the_first_picture_are_found(sub_tags: dict[int, int]) -> None:
    """The first picture is a preview that is not marked as one."""
    preview = hostile.tiff(PIXELS, THUMBNAIL | {254: 0, 330: 0})
    sub_ifd = hostile.tiff(PIXELS, THUMBNAIL | {254: 0} | sub_tags)[8 + len(PIXELS) :]
    entry = struct.pack("<HHI", 330, 4, 1)
    where = preview.index(entry) + len(entry)
    data = preview[:where] + struct.pack("<I", len(preview)) + preview[where + 4 :] + sub_ifd
    assert refusal(data)[0].startswith("the file is camera raw (TIFF")


@pytest.mark.parametrize("mark", [{254: 1}, {255: 2}])
def test_a_thumbnail_before_another_page_is_not_taken_for_the_picture(mark: dict[int, int]) -> None:
    thumbnail = hostile.tiff(PIXELS, THUMBNAIL | {254: 0} | mark)
    tags = thumbnail[8 + len(PIXELS) :]
    problem, hint = refusal(thumbnail[:-4] + struct.pack("<I", len(thumbnail)) + tags)
    assert (problem, hint) == ("a TIFF that begins with a thumbnail", "save its full picture alone")
    assert load_image_bytes(thumbnail, "x").size == (4, 3)  # it is the only picture


def test_tiffs_with_sub_ifds_and_a_full_first_picture_are_read() -> None:
    assert load_image_bytes(hostile.tiff(PIXELS, THUMBNAIL | {254: 0, 330: 8}), "x").size == (4, 3)


# Variants


def bmp(bits: int, compression: int, masks: bytes = b"") -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, bits, compression, 64, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 118 + len(masks), 0, 0, 54 + len(masks)) + header + masks + bytes(64)


def psd(
    mode: int, depth: int, channels: list[int], resources: bytes = b"", version: int = 1, compression: int = 0
) -> bytes:
    """A PSD of 4 x 3 pixels, one value for each channel; compression 1 is PackBits."""
    header = b"8BPS" + struct.pack(">H6xHIIHH", version, len(channels), 3, 4, depth, mode)
    pixels = b"".join(bytes([value]) * (12 * depth // 8) for value in channels)
    if compression == 1:
        rows = [bytes([256 - 3, value]) for value in channels for _ in range(3)]
        pixels = struct.pack(f">{len(rows)}H", *map(len, rows)) + b"".join(rows)
    return header + struct.pack(">II", 0, len(resources)) + resources + struct.pack(">IH", 0, compression) + pixels


def changed_jpeg(offset: int, value: int) -> bytes:
    data = bytearray(hostile.encoded(hostile.landmark(), "JPEG"))
    data[data.index(b"\xff\xc0") + offset] = value
    return bytes(data)


NO_COMPOSITE = b"8BIM" + struct.pack(">HHIIB", 1057, 0, 6, 1, 0) + b"\0"
VARIANTS = [
    (hostile.tiff(bytes(144), {256: 4, 257: 3, 258: 32, 277: 3, 262: 2, 339: 3}), "TIFF", "3 float samples of 32 bits"),
    (hostile.tiff(bytes(60), {256: 4, 257: 3, 258: 8, 277: 5}), "TIFF", "5 samples of 8 bits"),
    (hostile.tiff(bytes(96), {256: 4, 257: 3, 258: 64, 339: 3}), "TIFF", "1 float sample of 64 bits"),
    (
        hostile.tiff(bytes(60), {256: 4, 257: 3, 258: 8, 259: 34712}),
        "TIFF",
        "1 sample of 8 bits, compression JPEG 2000",
    ),
    (hostile.tiff(bytes(60), {256: 4, 257: 3, 258: 8, 259: 999}), "TIFF", "1 sample of 8 bits, compression 999"),
    (bmp(16, 3, struct.pack("<3I", 0xF00, 0xF0, 0xF)), "BMP", "Unsupported BMP bitfields layout"),
    (bmp(2, 0), "BMP", "Unsupported BMP pixel depth (2)"),
    (psd(3, 16, [1, 2, 3]), "PSD", "colour mode 3, 16 bits"),
    (psd(7, 8, [1, 2, 3]), "PSD", "multichannel colours are not supported"),
    (hostile.tiff(bytes(12), {256: 4, 257: 3, 258: 8, 339: 2}), "TIFF", "1 signed sample of 8 bits"),
    (
        hostile.tiff(zlib.compress(bytes(18)), {256: 4, 257: 3, 258: 12, 259: 8, 317: 2}),
        "TIFF",
        "1 sample of 12 bits, predictor 2",
    ),
    (psd(3, 8, [1, 2, 3], compression=2), "PSD", "ZIP compression is not supported"),
    (psd(3, 8, [1, 2, 3], NO_COMPOSITE), "PSD", "saved without the composite picture, which is not supported"),
    (changed_jpeg(4, 12), "JPEG", "cannot handle 12-bit layers"),
    (changed_jpeg(1, 0xC5), "JPEG", "coding process 0xc5"),
    (changed_jpeg(1, 0xF7), "JPEG", "coding process 0xf7"),
]


@pytest.mark.parametrize(("data", "format", "variant"), VARIANTS, ids=[variant for *_, variant in VARIANTS])
def test_whole_files_of_an_unsupported_variant_are_not_called_damaged(data: bytes, format: str, variant: str) -> None:
    assert refusal(data) == (f"{format} of a variant that is not decoded here ({variant})", VARIANT_HINT)


@pytest.mark.parametrize(("data", "format", "variant"), VARIANTS[:5])
def test_half_a_tiff_of_an_unsupported_variant_is_damaged(data: bytes, format: str, variant: str) -> None:
    assert refusal(data[: len(data) - 20])[0] == "damaged or cut short TIFF (its header cannot be read)"


def test_compressions_without_a_decoder_are_named() -> None:
    """Which ones there are depends on how Pillow was built; libtiff says that one is missing."""
    for code, name in ((50001, "WebP"), (34887, "LERC")):
        problem, hint = refusal(hostile.tiff(bytes(60), {256: 4, 257: 3, 258: 8, 259: code}))
        variant = f"TIFF of a variant that is not decoded here (1 sample of 8 bits, compression {name})"
        assert (problem, hint) == (variant, VARIANT_HINT) or problem.startswith("damaged or cut short TIFF")


@pytest.mark.parametrize("brand", [b"avif", b"heic"])
def test_a_file_with_too_many_pixels_for_its_decoder_is_said_to_be_that(brand: bytes) -> None:
    pytest.importorskip("pillow_heif")
    tile, whole = (b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", side, side) for side in (512, 17000))
    problem, _ = refusal(hostile.ftyp(brand)[:24] + tile + whole + bytes(100))
    assert problem == "17000 x 17000 pixels, more than the limit of 100 megapixels"


def test_a_large_photoshop_document_is_named() -> None:
    problem = "not an image: the file is a large Photoshop document (PSB)"
    assert refusal(psd(3, 8, [1, 2, 3], version=2)) == (problem, "export it as a PNG image first")


# Formats that Pillow reads


def assert_landmark(media: Media) -> None:
    assert media.size == (96, 64)
    assert media.notes == ()
    assert {name: tuple(color) for name, color in hostile.corners(media.image).items()} == hostile.CORNERS


@pytest.mark.parametrize(
    ("format", "options"), [("SGI", {}), ("PCX", {}), ("TGA", {}), ("TGA", {"compression": "tga_rle"})]
)
def test_older_formats_are_read(format: str, options: dict[str, str]) -> None:
    data = hostile.encoded(hostile.landmark(), format, **options)
    assert_landmark(load_image_bytes(data, f"a.{format.lower()}"))
    assert refusal(data[: len(data) // 2], f"a.{format.lower()}")[0].startswith(f"damaged or cut short {format} (")
    if format != "TGA":
        assert_landmark(load_image_bytes(data, "a"))


@pytest.mark.parametrize("format", ["PPM", "ICO", "QOI"])
def test_half_a_file_is_damaged(format: str) -> None:
    data = hostile.encoded(hostile.noise(), format)
    assert refusal(data[: len(data) // 2])[0].startswith(f"damaged or cut short {format} (")


def test_a_cut_jpeg_2000_without_a_container_is_damaged() -> None:
    data = hostile.encoded(hostile.noise(), "JPEG2000", no_jp2=True)
    assert load_image_bytes(data, "x").size == (128, 128)
    problem, hint = refusal(data[: len(data) // 2])
    assert problem.startswith("damaged or cut short JPEG 2000 (")
    assert hint == "copy or download it again"


def test_a_cut_psd_is_to_be_copied_again() -> None:
    problem, hint = refusal(psd(3, 8, [1, 2, 3])[:-10])
    assert problem.startswith("damaged or cut short PSD (")
    assert hint == "copy or download it again"


def test_fits_is_named() -> None:
    problem = "not an image: the file is a FITS image"
    assert refusal(b"SIMPLE  =                    T".ljust(2880)) == (problem, "convert it to PNG or JPEG first")


def test_a_text_that_begins_like_a_ppm_is_a_text() -> None:
    assert refusal(b"P1 is the first part, P2 the second one. " * 9)[0] == "not an image: the file is text"


def test_tga_has_no_signature_so_it_is_known_by_its_name() -> None:
    data = hostile.encoded(hostile.landmark(), "TGA")
    assert refusal(data, "a.png")[0] == "not an image: the file is of no known image format"
    assert refusal(np.random.default_rng(0).bytes(5000), "a.tga")[0].startswith("not an image: ")
    assert_landmark(load_image_bytes(hostile.encoded(hostile.landmark(), "PNG"), "a.tga"))


@pytest.mark.parametrize(
    ("data", "expected", "notes"),
    [
        (psd(3, 8, [255, 0, 9]), (255, 0, 9), ()),
        (psd(1, 8, [77]), (77, 77, 77), ()),
        (psd(3, 8, [255, 0, 9, 0]), (255, 255, 255), ("transparency composited on white",)),
        (psd(4, 8, [255] * 4), (255, 255, 255), ("CMYK converted without a colour profile",)),
        (psd(1, 8, [77, 0]), (77, 77, 77), (LEFT_OUT.format(1),)),
        (psd(1, 8, [77, 0, 9], compression=1), (77, 77, 77), (LEFT_OUT.format(2),)),
        (psd(3, 8, [255, 0, 9, 0, 1], compression=1), (255, 0, 9), (LEFT_OUT.format(2),)),
        (psd(3, 8, [255, 0, 9, 255], compression=1), (255, 0, 9), ()),
        (psd(4, 8, [255] * 5), (255, 255, 255), ("CMYK converted without a colour profile", LEFT_OUT.format(1))),
    ],
)
def test_the_composite_of_a_psd_is_read(data: bytes, expected: tuple[int, int, int], notes: tuple[str, ...]) -> None:
    media = load_image_bytes(data, "x")
    assert (media.size, media.notes, media.image.getpixel((3, 2))) == ((4, 3), notes, expected)


def test_folders_are_searched_for_them(tmp_path: Path) -> None:
    names = ["a.psd", "b.tga", "c.PCX", "d.sgi", "e.dng", "f.NEF"]  # camera raw is refused by name
    for name in [*names, "g.txt"]:
        Image.new("RGB", (1, 1)).save(tmp_path / name, "PNG")
    assert [Path(file.source).name for file in Listing([str(tmp_path)])] == names
