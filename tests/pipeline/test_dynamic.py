"""An average spread by information (Eq. 7), through the command line: over a folder, a stream, and for one image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesid_cli.selection.budget import Budget, TokenStream, token_bounds
from prunesid_cli.tokencache import Entry, open_cache, read_tokens
from tests.caches import items_by_source, write_shard
from tests.conftest import Run

ASK = "what is shown?"


def kept(cache: Path) -> dict[str, tuple[int, ...]]:
    return {source: item.slots for source, item in items_by_source(cache).items()}


def test_dynamic_average_is_exact(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    assert run("compress", *pictures, "--out", tmp_path / "c", "-m", llava, "-k", "64", "--dynamic").code == 0
    counts = [item.kept for item in items_by_source(tmp_path / "c").values()]
    assert sum(counts) == 64 * len(pictures)
    assert len(set(counts)) > 1
    one = run("ask", "-m", llava, pictures[0], ASK, "--dynamic")
    assert one.code == 2
    assert "average" in one.err
    several = run("ask", "-m", llava, *pictures[:4], ASK, "--dynamic", "-k", "64", "--json")
    assert several.records[0]["kept"] == 256


def test_dynamic_goes_on_as_planned(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Images that an interrupted run had written keep their share, and the others get what they would have had."""
    options = ("-m", llava, "-k", "64", "--dynamic", "--batch-size", "1")
    run("compress", *pictures, "--out", tmp_path / "whole", *options)
    whole = {s: item.slots for s, item in items_by_source(tmp_path / "whole").items()}
    part = tmp_path / "part"
    part.mkdir()
    shard = next(open_cache(tmp_path / "whole").items())[0]
    some = shard.items[:4]
    entries = [
        Entry(provenance=i.provenance, tokens=t, phi=i.phi) for i, t in zip(some, read_tokens(shard, some), strict=True)
    ]
    write_shard(part, 0, shard.run, shard.tool, entries)
    assert "4 already" in run("compress", *pictures, "--out", part, *options).err
    assert {s: item.slots for s, item in items_by_source(part).items()} == whole


def test_dynamic_with_nothing_usable(run: Run, llava: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    options = ("-m", llava, "-k", "64", "--dynamic", "--out", tmp_path / "c")
    empty = run("compress", tmp_path / "in", *options)
    assert (empty.code, "no images or clips found" in empty.err) == (0, True)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    bad = run("compress", tmp_path / "in", *options)
    assert (bad.code, "not an image" in bad.err) == (3, True)
    assert "bad.png" in run("cache", "ls", tmp_path / "c", "--failed").out


def test_dynamic_average_over_a_growing_folder(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    options = ("-m", llava, "-k", "64", "--dynamic", "--out", tmp_path / "c")
    for end in (4, 7, 10):
        assert run("compress", *pictures[:end], *options).code == 0
        counts = [item.kept for item in items_by_source(tmp_path / "c").values()]
        assert (len(counts), sum(counts)) == (end, 64 * end)


@given(st.lists(st.floats(0.5, 0.9), min_size=1, max_size=300), st.integers(32, 200), st.floats(0.3, 1.2))
def test_a_stream_comes_to_its_average(values: list[float], mean: int, first: float) -> None:
    """Whatever the images and however wrong the first reference: what is too much or too little stays bounded."""
    floor, ceiling = token_bounds(mean, 576)
    for stream in (TokenStream(Budget(mean)), TokenStream(Budget(mean), first, 50)):
        counts = stream.spread(values, [576] * len(values))
        assert all(floor <= count <= ceiling for count in counts)
        given = 0
        for number, count in enumerate(counts, 1):
            given += count
            assert abs(given - mean * number) < 12 * mean


def test_a_long_stream_is_close() -> None:
    values = [0.6 + 0.3 * ((7 * i) % 101) / 101 for i in range(5000)]  # and then all others hold twice as much
    values += [2 * value for value in values]
    counts = TokenStream(Budget(64)).spread(values, [576] * len(values))
    assert abs(sum(counts) / len(counts) - 64) < 0.02
    assert max(counts) - min(counts) > 15


def test_a_stream_goes_on_where_it_stopped() -> None:
    values = [0.5 + 0.4 * ((13 * i) % 37) / 37 for i in range(200)]
    whole, totals = TokenStream(Budget(64)), [400 + i for i in range(200)]
    first = whole
    first_part = whole.spread(values[:90], totals[:90])
    for value, total, count in zip(values, totals, first_part, strict=False):
        first = first.advance(value, total, count)
    assert whole.spread(values, totals) == first_part + first.spread(values[90:], totals[90:])


@pytest.mark.parametrize("cuts", [(4,), (1, 2, 9), (10,)])
def test_interrupted_streams(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    options = ("-m", llava, "-k", "64", "--stream", "--out")
    assert run("compress", *pictures, *options, tmp_path / "whole", "--batch-size", "1").code == 0
    for end in (*cuts, len(pictures)):
        names = "".join(f"{path}\n" for path in pictures[:end]).encode()
        ran = run("compress", "-", *options, tmp_path / "parts", "--batch-size", "3", stdin=names)
        assert ran.code == 0
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")
    counts = [len(indices) for indices in kept(tmp_path / "whole").values()]
    assert len(set(counts)) > 1
    assert abs(sum(counts) - 64 * len(counts)) < 64


def test_a_stream_passes_over_what_fails(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    options = ("-m", llava, "-k", "64", "--stream", "--out")
    assert run("compress", *pictures[:3], *options, tmp_path / "good").code == 0
    assert run("compress", pictures[0], tmp_path / "bad.png", *pictures[1:3], *options, tmp_path / "some").code == 3
    assert kept(tmp_path / "some") == kept(tmp_path / "good")


def test_calibrated(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """One image gets what it would get among the images that were measured, rounding and limits aside."""
    cache, others = tmp_path / "c", tmp_path / "others"
    made = run("compress", *pictures, "--calibrate", "--out", cache, "-m", llava, "--json")
    assert (made.code, made.out.count("\n"), made.records[0]["images"]) == (0, 1, 10)
    assert "--calibration" in made.err
    assert run("compress", *pictures, "--out", others, "-m", llava, "-k", "64", "--dynamic").code == 0
    average = [len(indices) for indices in kept(others).values()]
    for path, count in list(zip(pictures, average, strict=True))[:3]:
        for reference in (cache, others):
            asked = run("ask", "-m", llava, path, ASK, "-k", "64", "--calibration", reference, "--json")
            assert abs(asked.records[0]["kept"] - count) <= 1
    assert run("compress", pictures[0], "--out", cache, "-m", llava, "-k", "64", "--dynamic").code == 0
    assert abs(len(kept(cache)[str(pictures[0])]) - average[0]) <= 1
    told = run("cache", "info", cache, "--json").records[0]
    assert told["calibration"]["images"] == 10
    assert "calibration phi" in run("cache", "info", cache).out


def test_a_calibration_is_for_its_own_model(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "c"
    assert run("compress", *pictures[:2], "--calibrate", "--out", cache, "-m", llava).code == 0
    for command in (
        ("ask", pictures[0], ASK, "--calibration", cache),
        ("compress", pictures[0], "--dynamic", "--out", cache),
    ):
        refused = run(*command, "-m", "demo")
        assert (refused.code, "measured with model" in refused.err, "--calibrate" in refused.err) == (1, True, True)
    nothing = run("answer", cache, ASK)
    assert (nothing.code, "holds no tokens" in nothing.err) == (1, True)


def test_what_cannot_be_calibrated(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "c"
    (tmp_path / "bad.png").write_bytes(b"no picture")
    nothing = run("compress", tmp_path / "bad.png", "--calibrate", "--out", cache, "-m", llava)
    assert (nothing.code, "no image to measure" in nothing.err, cache.exists()) == (1, True, False)
    some = run("compress", tmp_path / "bad.png", pictures[0], "--calibrate", "--out", cache, "-m", llava)
    assert (some.code, "not an image" in some.err) == (3, True)
    assert run("ask", pictures[0], ASK, "-m", llava, "--calibration", tmp_path / "nowhere").code == 1
    (cache / "calibration.json").write_text(json.dumps({"phi": -1, "values": []}))
    for command in (("ask", pictures[0], ASK, "--calibration", cache, "-m", llava), ("cache", "verify", cache)):
        ran = run(*command)
        assert (ran.code, "calibration.json" in ran.err, "Traceback" in ran.err) == (1, True, False)
