"""A budget spread across images by their information (Eq. 7): over a folder, over a stream, and for one image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesid_cli.selection.budget import Budget, TokenStream, token_bounds
from prunesid_cli.tokencache import Entry, open_cache, read_tokens
from tests.caches import items_by_source, write_shard
from tests.conftest import PROMPT, Run


def kept_slots(cache: Path) -> dict[str, tuple[int, ...]]:
    return {source: item.slots for source, item in items_by_source(cache).items()}


def test_the_average_of_a_folder_is_exact(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    assert run("compress", *pictures, "--out", tmp_path / "c", "-m", llava, "-k", "64", "--dynamic").code == 0
    counts = [item.kept for item in items_by_source(tmp_path / "c").values()]
    assert sum(counts) == 64 * len(pictures)
    assert len(set(counts)) > 1
    single = run("ask", "-m", llava, pictures[0], PROMPT, "--dynamic")
    assert single.code == 2
    assert "average" in single.err
    several = run("ask", "-m", llava, *pictures[:4], PROMPT, "--dynamic", "-k", "64", "--json")
    assert several.records[0]["kept"] == 256


def test_an_interrupted_run_keeps_its_plan(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Images in the cache keep their tokens; the others get as many as in an uninterrupted run."""
    options = ("-m", llava, "-k", "64", "--dynamic", "--batch-size", "1")
    run("compress", *pictures, "--out", tmp_path / "whole", *options)
    part = tmp_path / "part"
    part.mkdir()
    shard = next(open_cache(tmp_path / "whole").items())[0]
    items = shard.items[:4]
    entries = [
        Entry(provenance=item.provenance, tokens=tokens, phi=item.phi)
        for item, tokens in zip(items, read_tokens(shard, items), strict=True)
    ]
    write_shard(part, 0, shard.run, shard.tool, entries)
    assert "4 already" in run("compress", *pictures, "--out", part, *options).err
    assert kept_slots(part) == kept_slots(tmp_path / "whole")


def test_no_usable_image(run: Run, llava: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    options = ("-m", llava, "-k", "64", "--dynamic", "--out", tmp_path / "c")
    empty = run("compress", tmp_path / "in", *options)
    assert (empty.code, "no images or clips found" in empty.err) == (0, True)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    bad = run("compress", tmp_path / "in", *options)
    assert (bad.code, "not an image" in bad.err) == (3, True)
    assert "bad.png" in run("cache", "ls", tmp_path / "c", "--failed").out


def test_the_average_is_exact_as_a_folder_grows(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    options = ("-m", llava, "-k", "64", "--dynamic", "--out", tmp_path / "c")
    for end in (4, 7, 10):
        assert run("compress", *pictures[:end], *options).code == 0
        counts = [item.kept for item in items_by_source(tmp_path / "c").values()]
        assert (len(counts), sum(counts)) == (end, 64 * end)


@given(st.lists(st.floats(0.5, 0.9), min_size=1, max_size=300), st.integers(32, 200), st.floats(0.3, 1.2))
def test_a_stream_stays_near_its_average(values: list[float], mean: int, first: float) -> None:
    """The deviation is bounded for all images and for any first reference."""
    floor, ceiling = token_bounds(mean, 576)
    for stream in (TokenStream(Budget(mean)), TokenStream(Budget(mean), first, 50)):
        counts = stream.spread(values, [576] * len(values))
        assert all(floor <= count <= ceiling for count in counts)
        spent = 0
        for number, count in enumerate(counts, 1):
            spent += count
            assert abs(spent - mean * number) < 12 * mean


def test_a_long_stream_meets_its_average() -> None:
    values = [0.6 + 0.3 * ((7 * i) % 101) / 101 for i in range(5000)]  # from the middle on, images hold twice as much
    values += [2 * value for value in values]
    counts = TokenStream(Budget(64)).spread(values, [576] * len(values))
    assert abs(sum(counts) / len(counts) - 64) < 0.02
    assert max(counts) - min(counts) > 15


def test_a_stream_continues_from_its_state() -> None:
    values = [0.5 + 0.4 * ((13 * i) % 37) / 37 for i in range(200)]
    whole, totals = TokenStream(Budget(64)), [400 + i for i in range(200)]
    first = whole
    first_part = whole.spread(values[:90], totals[:90])
    for value, total, count in zip(values, totals, first_part, strict=False):
        first = first.advance(value, total, count)
    assert whole.spread(values, totals) == first_part + first.spread(values[90:], totals[90:])


@pytest.mark.parametrize("cuts", [(4,), (1, 2, 9), (10,)])
def test_a_stream_in_parts_keeps_the_tokens_of_one_run(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    options = ("-m", llava, "-k", "64", "--stream", "--out")
    assert run("compress", *pictures, *options, tmp_path / "whole", "--batch-size", "1").code == 0
    for end in (*cuts, len(pictures)):
        names = "".join(f"{path}\n" for path in pictures[:end]).encode()
        result = run("compress", "-", *options, tmp_path / "parts", "--batch-size", "3", stdin=names)
        assert result.code == 0
    assert kept_slots(tmp_path / "parts") == kept_slots(tmp_path / "whole")
    counts = [len(indices) for indices in kept_slots(tmp_path / "whole").values()]
    assert len(set(counts)) > 1
    assert abs(sum(counts) - 64 * len(counts)) < 64


def test_a_stream_skips_unreadable_images(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    options = ("-m", llava, "-k", "64", "--stream", "--out")
    assert run("compress", *pictures[:3], *options, tmp_path / "good").code == 0
    assert run("compress", pictures[0], tmp_path / "bad.png", *pictures[1:3], *options, tmp_path / "mixed").code == 3
    assert kept_slots(tmp_path / "mixed") == kept_slots(tmp_path / "good")


def test_a_calibration_gives_one_image_its_share(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """It gets as many tokens as it would get among the measured images, except for rounding and limits."""
    cache, others = tmp_path / "c", tmp_path / "others"
    measured = run("compress", *pictures, "--calibrate", "--out", cache, "-m", llava, "--json")
    assert (measured.code, measured.out.count("\n"), measured.records[0]["images"]) == (0, 1, 10)
    assert "--calibration" in measured.err
    assert run("compress", *pictures, "--out", others, "-m", llava, "-k", "64", "--dynamic").code == 0
    average = [len(indices) for indices in kept_slots(others).values()]
    for path, count in list(zip(pictures, average, strict=True))[:3]:
        for reference in (cache, others):
            asked = run("ask", "-m", llava, path, PROMPT, "-k", "64", "--calibration", reference, "--json")
            assert abs(asked.records[0]["kept"] - count) <= 1
    assert run("compress", pictures[0], "--out", cache, "-m", llava, "-k", "64", "--dynamic").code == 0
    assert abs(len(kept_slots(cache)[str(pictures[0])]) - average[0]) <= 1
    information = run("cache", "info", cache, "--json").records[0]
    assert information["calibration"]["images"] == 10
    assert "calibration phi" in run("cache", "info", cache).out


def test_a_calibration_of_another_model_is_refused(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "c"
    assert run("compress", *pictures[:2], "--calibrate", "--out", cache, "-m", llava).code == 0
    for command in (
        ("ask", pictures[0], PROMPT, "--calibration", cache),
        ("compress", pictures[0], "--dynamic", "--out", cache),
    ):
        refused = run(*command, "-m", "demo")
        assert (refused.code, "measured with model" in refused.err, "--calibrate" in refused.err) == (1, True, True)
    nothing = run("answer", cache, PROMPT)
    assert (nothing.code, "holds no tokens" in nothing.err) == (1, True)


def test_calibrations_that_fail(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "c"
    (tmp_path / "bad.png").write_bytes(b"no picture")
    nothing = run("compress", tmp_path / "bad.png", "--calibrate", "--out", cache, "-m", llava)
    assert (nothing.code, "no image to measure" in nothing.err, cache.exists()) == (1, True, False)
    partial = run("compress", tmp_path / "bad.png", pictures[0], "--calibrate", "--out", cache, "-m", llava)
    assert (partial.code, "not an image" in partial.err) == (3, True)
    assert run("ask", pictures[0], PROMPT, "-m", llava, "--calibration", tmp_path / "nowhere").code == 1
    (cache / "calibration.json").write_text(json.dumps({"phi": -1, "values": []}))
    for command in (("ask", pictures[0], PROMPT, "--calibration", cache, "-m", llava), ("cache", "verify", cache)):
        result = run(*command)
        assert (result.code, "calibration.json" in result.err, "Traceback" in result.err) == (1, True, False)


def test_a_picture_that_is_cached_needs_no_average(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    options = ("-m", llava, "-k", "64", "--dynamic", "--out", tmp_path / "c")
    assert run("compress", *pictures[:3], *options).code == 0
    again = run("compress", pictures[0], *options)
    assert (again.code, "nothing to do: 1 already in the cache" in again.err) == (0, True), again.err
