"""Grey and colours of more than 8 bits: which value is white, WhiteIsZero, and colours that mean transparent."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from prunesid_cli.inputs.image import Media, load_image_bytes
from tests import hostile

WHITE_IS_ZERO = {262: 0}
MAX_SAMPLE_VALUE = 281
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def grey(media: Media) -> list[list[int]]:
    pixels = np.asarray(media.image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def load(data: bytes) -> Media:
    return load_image_bytes(data, "x")


@pytest.mark.parametrize("is_inverted", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", range(9, 16))
def test_packed_grey_is_scaled_from_its_bits_per_sample(bits: int, order: str, is_inverted: bool) -> None:
    largest = 2**bits - 1
    rows = [[0, 1, largest // 3, largest // 2, largest], [largest, largest - 1, 7, 0, 300]]
    tags = {256: 5, 257: 2, 258: bits} | (WHITE_IS_ZERO if is_inverted else {})
    media = load(hostile.tiff(hostile.packed_rows(rows, bits), tags, order))
    expected = np.rint(np.array(rows) * (255 / largest)).astype(int)
    assert grey(media) == (255 - expected if is_inverted else expected).tolist()
    assert media.notes == (f"16-bit grey scaled from 0..{largest} (declared by the file) to 0..255",)


def test_packed_grey_may_be_compressed_tiled_and_turned() -> None:
    rows = [[0, 4095, 0], [0, 0, 2048]]
    packed = zlib.compress(hostile.packed_rows(rows, 12))
    media = load(hostile.tiff(packed, {256: 3, 257: 2, 258: 12, 259: 8, 274: 6}))
    assert grey(media) == [[0, 0], [0, 255], [128, 0]]  # turned to the right
    tile = [[0] * 16 for _ in range(16)]
    tile[1][2] = 4095
    pixels = hostile.packed_rows(tile, 12)
    media = load(hostile.tiff(pixels, {256: 3, 257: 2, 258: 12, 322: 16, 323: 16}))
    assert grey(media) == [[0, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("largest", [1, 255, 1023, 4095, 16383, 40000])
def test_the_declared_largest_value_is_white(largest: int, order: str) -> None:
    media = load(hostile.row_tiff([0, largest // 2, largest], np.uint16, order, {MAX_SAMPLE_VALUE: largest}))
    assert grey(media) == [[0, round(largest // 2 * 255 / largest), 255]]
    assert media.notes == (f"16-bit grey scaled from 0..{largest} (declared by the file) to 0..255",)


def test_a_dark_image_of_declared_range_stays_dark() -> None:
    assert grey(load(hostile.row_tiff([0, 16], np.uint16, "<", {MAX_SAMPLE_VALUE: 4095}))) == [[0, 1]]
    assert grey(load(hostile.tiff(hostile.packed_rows([[0, 16]], 12), {256: 2, 257: 1, 258: 12}))) == [[0, 1]]


def test_a_declaration_that_the_values_exceed_does_not_count() -> None:
    media = load(hostile.row_tiff([0, 0x8000, 0xFFFF], np.uint16, "<", {MAX_SAMPLE_VALUE: 4095}))
    assert (grey(media), media.notes) == ([[0, 128, 255]], ("16-bit grey scaled to 8",))


IN_16_BITS = {
    "png": hostile.grey16,
    "tiff": lambda values: hostile.row_tiff(values, np.uint16),
    "pgm": lambda values: b"P5 %d 1 65535\n" % len(values) + struct.pack(f">{len(values)}H", *values),
}


@pytest.mark.parametrize("name", IN_16_BITS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 77, 255], [0, 1, 77, 255]),  # a mask or label map keeps its values
        ([0, 2000, 4000], [0, 128, 255]),
        ([0, 16383], [0, 255]),
        ([200, 200], [255, 255]),
    ],
)
def test_values_far_below_16_bits_are_scaled_from_their_own_range(
    name: str, values: list[int], expected: list[int]
) -> None:
    media = load(IN_16_BITS[name](values))
    assert grey(media) == [expected]
    assert media.notes == (f"16-bit grey scaled from 0..{max(values)} (the range of its own values) to 0..255",)


@pytest.mark.parametrize("name", IN_16_BITS)
@pytest.mark.parametrize("values", [[0, 0], [0, 100, 16384], [5, 0xFFFF]])
def test_other_16_bit_images_keep_their_high_byte(name: str, values: list[int]) -> None:
    media = load(IN_16_BITS[name](values))
    assert (grey(media), media.notes) == ([[value >> 8 for value in values]], ("16-bit grey scaled to 8",))


def test_significant_bits_of_a_png_count_if_the_values_are_not_shifted_up() -> None:
    twelve = (b"sBIT", bytes([12]))
    assert grey(load(hostile.grey16([0, 1000, 2047], twelve))) == [[0, 62, 127]]
    assert grey(load(hostile.grey16([0, 0x7FF0, 0xFFF0], twelve))) == [[0, 127, 255]]


def test_a_clear_value_is_no_part_of_the_range() -> None:
    media = load(hostile.grey16([0, 100, 0xFFFF], (b"tRNS", struct.pack(">H", 0xFFFF))))
    assert grey(media) == [[0, 255, 255]]
    note = "16-bit grey scaled from 0..100 (the range of its own values) to 0..255, transparency composited on white"
    assert media.notes == (note,)


@pytest.mark.parametrize("header", [b"P5 3 1 4095\n", b"P5 # made by 65535\n3 1\n4095\n"])
def test_a_dark_pgm_of_declared_range_stays_dark(header: bytes) -> None:
    media = load(header + struct.pack(">3H", 0, 160, 320))
    assert (grey(media), media.notes) == ([[0, 10, 20]], ("16-bit grey scaled to 8",))


def test_a_dark_jpeg_2000_of_declared_range_stays_dark() -> None:
    values = np.full((64, 64), 1 << 14, np.uint16)
    values[32:] += 4000
    data = bytearray(hostile.encoded(Image.fromarray(values), "JPEG2000"))
    # 15 bits, counted from 0. The file holds the distance from the middle of the range, so the values fall by 1 << 14.
    data[data.index(b"\xff\x51") + 40] = 14
    media = load(bytes(data))
    assert media.notes == ("16-bit grey scaled to 8",)
    assert (grey(media)[0][0], grey(media)[63][63]) == (0, 2 * 4000 >> 8)
    undeclared = load(hostile.encoded(Image.fromarray(values // 8), "JPEG2000"))
    assert grey(undeclared)[63][63] == 255


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 64, 255], np.uint8, [255, 191, 0]),
        ([0, 0x4000, 0xFFFF], np.uint16, [255, 191, 0]),
        ([0, 100, 200], np.uint16, [255, 127, 0]),  # far below 16 bits
        ([0, 50_000, 100_000], np.int32, [255, 127, 0]),
        ([0.0, 0.25, 1.0], np.float32, [255, 191, 0]),
    ],
)
def test_white_is_zero_at_any_depth(order: str, values: list[float], kind: type, expected: list[int]) -> None:
    assert grey(load(hostile.row_tiff(values, kind, order, WHITE_IS_ZERO))) == [expected]


def test_white_is_zero_keeps_further_pages() -> None:
    page = hostile.row_tiff([0, 0xFFFF], np.uint16, "<", WHITE_IS_ZERO)
    tags = page[8 + 4 :]  # behind the header and the pixels, which the second page has in common with the first
    media = load(page[:-4] + struct.pack("<I", len(page)) + tags)
    assert grey(media) == [[255, 0]]
    assert media.notes[0] == "2 pages: the first is used"


def test_a_clear_colour_of_16_bits_is_compared_in_16_bits() -> None:
    colours = [(0x1234, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9ABD), (0x12FF, 0x5678, 0x9ABC)]
    pixels = b"\0" + b"".join(struct.pack(">3H", *colour) for colour in colours)
    clear = (b"tRNS", struct.pack(">3H", *colours[0]))
    media = load(hostile.png(3, 1, 16, 2, zlib.compress(pixels), clear))
    row = [media.image.getpixel((x, 0)) for x in range(3)]
    assert row == [WHITE, (0x12, 0x56, 0x9A), (0x12, 0x56, 0x9A)]
    assert media.notes == ("transparency composited on white",)
    other = (b"tRNS", struct.pack(">3H", 1, 2, 3))
    media = load(hostile.png(3, 1, 16, 2, zlib.compress(pixels), other))
    assert (media.image.getpixel((0, 0)), media.notes) == ((0x12, 0x56, 0x9A), ())


# Colours, and grey with alpha


def png16(kind: int, pixels: list[tuple[int, ...]], *chunks: tuple[bytes, bytes]) -> bytes:
    """One row of 16-bit pixels; kind 2 is RGB, 4 grey with alpha, 6 RGB with alpha."""
    row = b"\0" + b"".join(struct.pack(f">{len(pixel)}H", *pixel) for pixel in pixels)
    return hostile.png(len(pixels), 1, 16, kind, zlib.compress(row), *chunks)


def color_tiff(pixels: list[tuple[int, ...]], order: str = "<", **tags: int) -> bytes:
    """One row of RGB or RGBA of 16 bits; `tags` by their numbers: "t281"."""
    values = np.array(pixels, order + "u2")
    more = {int(name[1:]): value for name, value in tags.items()}
    packed = zlib.compress(values.tobytes()) if more.get(259) == 8 else values.tobytes()
    form = {256: len(pixels), 257: 1, 258: 16, 262: 2, 277: len(pixels[0])}
    return hostile.tiff(packed, form | ({338: 2} if len(pixels[0]) == 4 else {}) | more, order)


EIGHT_IN_16 = [(0, 0, 0), (255, 128, 1), (7, 0, 254)]
TWELVE_IN_16 = [(0, 0, 0), (4000, 2000, 1000)]


@pytest.mark.parametrize(
    ("data", "expected", "note"),
    [
        (png16(2, EIGHT_IN_16), EIGHT_IN_16, "0..255 (the range of its own values)"),
        (png16(6, [(*rgb, 0xFFFF) for rgb in EIGHT_IN_16]), EIGHT_IN_16, "0..255 (the range of its own values)"),
        (png16(4, [(7, 0xFFFF), (255, 0xFFFF)]), [(7, 7, 7), WHITE], "0..255 (the range of its own values)"),
        (png16(2, TWELVE_IN_16), [BLACK, (255, 128, 64)], "0..4000 (the range of its own values)"),
        (png16(2, TWELVE_IN_16, (b"sBIT", b"\x0c" * 3)), [BLACK, (249, 125, 62)], "0..4095 (declared by the file)"),
        *(
            (color_tiff(EIGHT_IN_16, order, **tags), EIGHT_IN_16, "0..255 (the range of its own values)")
            for order in "<>"
            for tags in ({}, {"t259": 8})
        ),
        (color_tiff(TWELVE_IN_16, t281=4095), [BLACK, (249, 125, 62)], "0..4095 (declared by the file)"),
        (color_tiff([(0, 20000, 40000)], t281=40000), [(0, 128, 255)], "0..40000 (declared by the file)"),
        (
            color_tiff([(*rgb, 0xFFFF) for rgb in EIGHT_IN_16], ">"),
            EIGHT_IN_16,
            "0..255 (the range of its own values)",
        ),
    ],
)
def test_colours_have_one_white_by_the_same_rule(data: bytes, expected: list[tuple[int, ...]], note: str) -> None:
    media = load(data)
    assert [media.image.getpixel((x, 0)) for x in range(len(expected))] == expected
    assert media.notes == (f"16-bit colours scaled from {note} to 0..255",)


@pytest.mark.parametrize("make", [lambda pixels: png16(2, pixels), color_tiff], ids=["png", "tiff"])
def test_other_16_bit_colours_keep_their_high_byte(make: Callable[[list[tuple[int, ...]]], bytes]) -> None:
    media = load(make([(0, 100, 0x4000), (5, 0xFFFF, 300)]))
    assert [media.image.getpixel((x, 0)) for x in range(2)] == [(0, 0, 64), (0, 255, 1)]
    assert load(make([BLACK, BLACK])).notes == media.notes == ()


def test_clear_colours_are_no_part_of_the_range() -> None:
    media = load(png16(6, [(10, 20, 40, 0xFFFF), (0xFFFF, 0xFFFF, 0, 0)]))
    assert [media.image.getpixel((x, 0)) for x in range(2)] == [(64, 128, 255), WHITE]
    note = "16-bit colours scaled from 0..40 (the range of its own values) to 0..255, transparency composited on white"
    assert media.notes == (note,)


def planes_tiff(pixels: list[tuple[int, int, int]], order: str = "<", compression: int = 1) -> bytes:
    """One row of RGB of 16 bits, one strip for each channel."""
    strips = [bytes(plane) for plane in np.array(pixels, order + "u2").T.copy()]
    strips = [zlib.compress(strip) if compression == 8 else strip for strip in strips]
    sizes = [len(strip) for strip in strips]
    offsets = [8 + 24 + sum(sizes[:number]) for number in range(3)]
    body = struct.pack(f"{order}6I", *offsets, *sizes) + b"".join(strips)
    form = {256: len(pixels), 257: 1, 258: 16, 259: compression, 262: 2, 277: 3, 284: 2, 273: 8, 279: 8 + 12}
    data = hostile.tiff(body, form, order)
    for tag in (273, 279):  # three values each
        data = data.replace(struct.pack(order + "HHI", tag, 4, 1), struct.pack(order + "HHI", tag, 4, 3))
    return data


def sgi16(values: list[int]) -> bytes:
    return (
        struct.pack(">HBBHHHH", 474, 0, 2, 2, len(values), 1, 1).ljust(512, b"\0") + np.array(values, ">u2").tobytes()
    )


@pytest.mark.parametrize(
    "data",
    [
        b"P6 1 1 65535\n" + struct.pack(">3H", 100, 1, 0),
        sgi16([0, 255]),
        planes_tiff(EIGHT_IN_16),
        planes_tiff(EIGHT_IN_16, compression=8),
    ],
    ids=["PPM", "SGI", "TIFF in planes", "compressed TIFF in planes"],
)
def test_where_low_bytes_are_not_read_a_note_says_that_the_picture_is_dark(data: bytes) -> None:
    media = load(data)
    assert np.asarray(media.image).max() <= 1
    assert media.notes == ("dark: no value is above 255 of 65,535, and they are not scaled",)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colours_in_planes(order: str, compression: int) -> None:
    media = load(planes_tiff([(0x1234, 0x5678, 0x9ABC), (0xFFFF, 0, 0x8000)], order, compression))
    assert [media.image.getpixel((x, 0)) for x in range(2)] == [(0x12, 0x56, 0x9A), (255, 0, 128)]
    assert media.notes == ()


@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        ([0, 7, 15], {281: 15}, [0, 119, 255]),
        ([0, 7, 15], {281: 15} | WHITE_IS_ZERO, [255, 136, 0]),
        ([0, 7, 16], {281: 15}, [0, 7, 16]),  # they exceed the declaration
        ([0, 7, 15], {281: 200}, [0, 7, 15]),  # not far below 8 bits
    ],
)
def test_8_bit_grey_of_a_small_declared_range(values: list[int], tags: dict[int, int], expected: list[int]) -> None:
    media = load(hostile.row_tiff(values, np.uint8, "<", tags))
    assert grey(media) == [expected]
    is_scaled = values != expected
    assert media.notes == ("8-bit values scaled from 0..15 (declared by the file) to 0..255",) * is_scaled


def test_few_bright_pixels_in_a_dark_picture_are_noted() -> None:
    values = [100] * 199 + [0xFFFF]
    note = "low contrast: values above 16,383 of 65,535 in only 1 of 200 pixels"
    media = load(hostile.grey16(values))
    assert (grey(media), media.notes) == ([[0] * 199 + [255]], (f"16-bit grey scaled to 8, {note}",))
    assert load(png16(2, [(value, value, 0) for value in values])).notes == (note,)


def test_unsigned_grey_of_32_bits() -> None:
    media = load(hostile.row_tiff([0, 1 << 31, (1 << 32) - 1], np.uint32))
    assert (grey(media), media.notes) == ([[0, 128, 255]], ("32-bit grey scaled from 0..4294967295 to 0..255",))
