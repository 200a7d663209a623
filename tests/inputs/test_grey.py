"""Grey of more than 8 bits: which value is white, WhiteIsZero, and colours of 16 bits that mean transparent."""

from __future__ import annotations

import struct
import zlib

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
