"""Tests of `show` and `ask --compare`: the bright patches of a picture are the tokens that a cache of the same options
holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunesid_cli.visualization.contact_sheet import GAP_PIXELS, TITLE_PIXELS
from tests.caches import items_by_source
from tests.conftest import Run
from tests.films import film
from tests.models.tiny import write_checkpoint

Pixels = np.ndarray[Any, np.dtype[np.int64]]
ASK = "what is shown?"
WITHIN = 5
"""Distance in pixels from the edge of a patch beyond which no outline reaches."""


@pytest.fixture(scope="session")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llava_next_video", tmp_path_factory.mktemp("tiled"))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> dict[str, Path]:
    """A square picture of one scene, a wide and a tall one of three, and a clip."""
    folder = tmp_path_factory.mktemp("shapes")
    scenes = [np.asarray(Image.open(path)) for path in pictures[:3]]
    made = {"square": scenes[0], "wide": np.concatenate(scenes, 1), "tall": np.concatenate(scenes, 0)}
    for name, pixels in made.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in made} | {"clip": film(folder / "clip.mp4", 12)}


def pixels(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def boxes(segment: dict, left: int, top: int, width: int, height: int) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Slots of a segment and pixels well inside their patches; the other arguments locate the segment's image."""
    start, end = np.array(segment["box"][:2]), np.array(segment["box"][2:])
    step = (end - start) / (segment["columns"], segment["rows"]) * (width, height)
    for at, slot in enumerate(segment["slots"]):
        x, y = start * (width, height) + step * (at % segment["columns"], at // segment["columns"]) + (left, top)
        rows, columns = slice(round(y) + WITHIN, round(y + step[1]) - WITHIN), slice(round(x) + WITHIN, None)
        yield slot, (rows, slice(columns.start, round(x + step[0]) - WITHIN))


def enlarge(source: Path, large: Path) -> tuple[int, int]:
    """Write a picture as large as `show` draws it, and return its size."""
    image = Image.open(source).convert("RGB")
    factor = -(-672 // max(image.size)) if max(image.size) < 672 else 1
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(large)
    return image.width * factor, image.height * factor


def check_brightness(picture: Path, all_kept: Path, record: dict, places: dict[int, tuple[int, int, int, int]]) -> None:
    """Check that exactly the kept patches look as they do if all are kept; places: region -> where its image lies."""
    drawn, full, seen = pixels(picture), pixels(all_kept), 0
    assert drawn.shape == full.shape
    for segment in record["segments"]:
        for slot, box in boxes(segment, *places[segment["regions"][0]]):
            if slot in segment["kept"]:
                assert (drawn[box] == full[box]).all(), (segment["regions"], slot)
            else:
                assert (drawn[box] <= 0.4 * full[box] + 1).all(), (segment["regions"], slot)
            seen += 1
    assert seen == sum(segment["rows"] * segment["columns"] for segment in record["segments"]) > 0


@pytest.mark.parametrize("shape", ["square", "wide", "tall"])
def test_kept_patches_are_bright(run: Run, llava: Path, shapes: dict[str, Path], tmp_path: Path, shape: str) -> None:
    source, out = shapes[shape], tmp_path / "kept.png"
    ran = run("show", source, "-m", llava, "--out", out, "--json")
    (record,) = ran.records
    assert (ran.code, record["picture"], record["kept"]) == (0, str(out), 63)
    run("compress", source, "-m", llava, "--out", tmp_path / "c")
    (item,) = items_by_source(tmp_path / "c").values()
    assert record["slots"] == list(item.slots)
    size = enlarge(source, tmp_path / "large.png")
    width, height = Image.open(out).size
    assert width == size[0] and max(size) >= 672 and 40 < height - size[1] < 200  # the legend
    Image.open(out).crop((0, 0, *size)).save(tmp_path / "drawn.png")
    check_brightness(tmp_path / "drawn.png", tmp_path / "large.png", record, {0: (0, 0, *size)})
    (segment,) = record["segments"]
    left, top, right, bottom = (np.array(segment["box"]) * (2 * size)).astype(int)
    unseen = np.ones(size[::-1], bool)
    unseen[top:bottom, left:right] = False
    drawn = pixels(tmp_path / "drawn.png")[unseen]
    assert (drawn.max(-1) == drawn.min(-1)).all(), "the cropped area is grey"
    assert (len(drawn) > 0) == (shape != "square")
    assert record["seen"] == pytest.approx(1 - unseen.mean(), abs=1e-3)
    note = "   67% of the picture is not seen: cropped off"
    assert (note in run("show", source, "-m", llava).out) == (shape != "square")


def test_tiles_are_drawn_beside_the_whole_picture(
    run: Run, tiled: Path, shapes: dict[str, Path], tmp_path: Path
) -> None:
    named = {"some": ("-k", "20%"), "all": ("-k", "all")}
    for name, options in named.items():
        ran = run("show", shapes["tall"], "-m", tiled, *options, "--out", tmp_path / f"{name}.png", "--json")
        if name == "some":
            (record,) = ran.records
    for name in named:  # the captions differ
        picture = Image.open(tmp_path / f"{name}.png")
        picture.crop((0, 0, picture.width, 2 * GAP_PIXELS + TITLE_PIXELS + 1008)).save(tmp_path / f"{name}.png")
    below = 2 * GAP_PIXELS + TITLE_PIXELS
    places = {0: (GAP_PIXELS, below, 336, 1008), 1: (2 * GAP_PIXELS + 336, below, 336, 1008)}
    assert {segment["regions"][0] for segment in record["segments"]} == {0, 1}
    check_brightness(tmp_path / "some.png", tmp_path / "all.png", record, places)


def test_a_clip_is_a_contact_sheet(run: Run, tiled: Path, shapes: dict[str, Path], tmp_path: Path) -> None:
    common = ("show", shapes["clip"], "-m", tiled, "--frames", 3)
    (record,) = run(*common, "--out", tmp_path / "some.png", "--json").records
    run(*common, "-k", "all", "--out", tmp_path / "all.png")
    assert [time for segment in record["segments"] for time in segment["times"]] == pytest.approx(
        [0, 0.2, 0.44], abs=0.05
    )
    width, height = record["size"]
    columns = (Image.open(tmp_path / "some.png").width - GAP_PIXELS) // (width + GAP_PIXELS)
    places = {
        number: (
            GAP_PIXELS + number % columns * (width + GAP_PIXELS),
            2 * GAP_PIXELS + TITLE_PIXELS + number // columns * (height + TITLE_PIXELS + 2 * GAP_PIXELS),
            width,
            height,
        )
        for number in range(3)
    }
    bottom = max(top + height for _, top, _, height in places.values())
    for name in ("some", "all"):  # without the captions, which differ
        picture = Image.open(tmp_path / f"{name}.png")
        picture.crop((0, 0, picture.width, bottom)).save(tmp_path / f"{name}.png")
    check_brightness(tmp_path / "some.png", tmp_path / "all.png", record, places)
    text = run(*common).out
    assert [f"{time:.1f} s" in text for time in (0, 0.2, 0.4)] == [True] * 3
    assert f"   {1 - record['seen']:.0%} of each frame is not seen: cropped off" in text
    assert record["seen"] == pytest.approx(min(width, height) / max(width, height), abs=1e-3)


def test_frames_of_a_window_share_groups(run: Run, tiled: Path, shapes: dict[str, Path]) -> None:
    """The cache of the same options holds the same tokens."""
    common = ("-m", tiled, "--frames", 4, "--window", 2, "-k", "30%")
    (record,) = run("show", shapes["clip"], *common, "--json").records
    assert [segment["regions"] for segment in record["segments"]] == [[0, 1], [2, 3]]
    assert [len(segment["groups"]) for segment in record["segments"]] == [2 * 36] * 2
    folder = shapes["clip"].parent / "windows"
    assert run("compress", shapes["clip"], *common, "--out", folder).code == 0
    (item,) = items_by_source(folder).values()
    assert record["slots"] == list(item.slots)


def test_text_has_one_character_per_patch(run: Run, llava: Path, pictures: list[Path]) -> None:
    options = ("show", pictures[0], "-m", llava)
    (record,) = run(*options, "--json").records
    *lines, caption = run(*options).out.splitlines()
    assert [slot for slot, shown in enumerate("".join(lines)) if shown == "#"] == record["segments"][0]["kept"]
    assert ({len(line) for line in lines}, set("".join(lines))) == ({24}, {"#", "."})
    assert caption == "63 of 576 visual tokens (10.9%)   62 of 576 patches and 1 CLS"
    *lines, caption = run(*options, "--groups").out.splitlines()
    letters = "".join(lines)
    assert [slot for slot, shown in enumerate(letters) if shown.isupper()] == record["segments"][0]["kept"]
    assert [ord(letter) - ord("a") for letter in letters.lower()] == record["segments"][0]["groups"]


def test_colours_are_only_for_terminals_that_have_them(
    run: Run, llava: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("show", pictures[0], "-m", llava)
    for name, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm", "COLUMNS": "50"}.items():
        monkeypatch.setenv(name, value)
    assert run(*options).out.count("\u2580") in (24 * 12, 48 * 24)
    monkeypatch.setenv("COLUMNS", "12")
    assert run(*options).out.count("\u2580") == 12 * 6
    monkeypatch.setenv("NO_COLOR", "1")
    out = run(*options).out
    assert ("\x1b" in out, [len(line) for line in out.splitlines()[:12]]) == (False, [12] * 12)


def test_groups_have_colours_and_links_leave_kept_patches_alone(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "groups.png"
    (record,) = run("show", pictures[0], "-k", "20", "--groups", "--links", "--out", out, "--json").records
    (segment,) = record["segments"]
    size = enlarge(pictures[0], tmp_path / "large.png")
    drawn, before = pixels(out)[: size[1]], pixels(tmp_path / "large.png")
    colours = dict[int, set]()
    num_suppressed = Counter(slot for slot in segment["suppressed_by"] if slot is not None)
    for slot, box in boxes(segment, 0, 0, *size):
        if slot in segment["kept"]:
            if not num_suppressed[slot]:  # else the patch has their number
                assert (drawn[box] == before[box]).all()
            corner = drawn[box[0].start - WITHIN, box[1].start - WITHIN]
            colours.setdefault(segment["groups"][slot], set()).add(tuple(corner.tolist()))
    assert [len(found) for found in colours.values()] == [1] * 5, "20 // 4 groups, each with a kept token"
    assert len(set.union(*colours.values())) == 5
    plain = tmp_path / "plain.png"
    run("show", pictures[0], "-k", "20", "--groups", "--out", plain)
    assert (pixels(plain)[: size[1]] != drawn).any()


def test_json_has_the_suppressor_of_each_token(run: Run, pictures: list[Path]) -> None:
    (record,) = run("show", pictures[0], "-k", "20", "--json").records
    (segment,) = record["segments"]
    pairs = [(slot, by) for slot, by in zip(segment["slots"], segment["suppressed_by"], strict=True) if by is not None]
    assert len(pairs) > 50
    for slot, by in pairs:
        assert segment["groups"][slot] == segment["groups"][by]
        assert segment["saliency"][slot] <= segment["saliency"][by]
        assert segment["suppressed_by"][by] is None, "only survivors suppress"
    assert segment["phi"] == record["phi"] == pytest.approx(1 - segment["redundancy"], abs=1e-5)
    (record,) = run("show", pictures[0], "--method", "random", "--json").records
    assert (record["method"], record["segments"][0]["groups"]) == ("random", None)


def test_a_warning_names_what_cannot_be_drawn(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    show = ("show", pictures[0], "-m", llava, "-k", "all", "--out", tmp_path / "a.png")
    for options in (["links"], ["groups"], ["groups", "links"]):
        what = " and no ".join(options)
        err = run(*show, *(f"--{option}" for option in options)).err
        assert f"warning: nothing was pruned, so there are no {what}\n" in err


def test_only_pictures_are_overwritten(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    text, picture = tmp_path / "notes.png", tmp_path / "kept.webp"
    text.write_text("precious", encoding="utf-8")
    for out, message in (
        (text, "exists and is not a picture"),
        (pictures[0], "is the input image itself"),
        (tmp_path / "kept.gif", "is not the name of a picture"),
        (tmp_path / "none" / "kept.png", "no such folder"),
    ):
        ran = run("show", pictures[0], "-m", llava, "--out", out)
        assert (ran.code, ran.out, message in ran.err, "hint: " in ran.err) == (2, "", True, True), ran.err
    assert text.read_text(encoding="utf-8") == "precious"
    for path in (pictures[0], pictures[1]):
        ran = run("show", path, "-m", llava, "--out", picture)
        assert (ran.code, ran.out) == (0, f"{picture}\n"), ran.err
    assert Image.open(picture).format == "WEBP"
    assert sorted(tmp_path.glob("*.*")) == [picture, text], "no temporary file is left"


def test_a_picture_goes_to_stdout_by_name(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    show = ("show", pictures[0], "-m", llava, "--out")
    assert run(*show, tmp_path / "a.png").code == 0
    capfdbinary.readouterr()
    ran = run(*show, "/dev/stdout")
    assert (ran.code, ran.out, capfdbinary.readouterr().out) == (0, "", (tmp_path / "a.png").read_bytes()), ran.err


def test_wrong_options_are_refused_before_a_model_is_loaded(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("a picture of a cat", encoding="utf-8")
    for code, message, *args in (
        (2, "methods that do: prunesid, prunesid-published", pictures[0], "--method", "grid", "--groups"),
        (2, "does not group tokens", pictures[0], "--method", "prunesid-plus", "--links", "--out", tmp_path / "a.png"),
        (2, "--out links.png", pictures[0], "--links"),
        (1, "the file is text", note),
        (1, "no such file", tmp_path / "none.png"),
    ):
        ran = run("show", *args, "-m", tmp_path / "no-model")
        assert (ran.code, ran.out, message in ran.err) == (code, "", True), ran.err


def test_compare_gives_both_answers(run: Run, llava: Path, pictures: list[Path]) -> None:
    common = ("ask", "-m", llava, *pictures[:2], ASK)
    ran = run(*common, "--compare", "--json", "--usage")
    (record,) = ran.records
    alone = {"pruned": run(*common, "--json").records[0], "all": run(*common, "--json", "-k", "all").records[0]}
    names = ("answer", "kept", "prompt_tokens", "new_tokens")
    for side, single in alone.items():
        assert {name: record[side][name] for name in names} == {name: single[name] for name in names}
        stages = [record[side][f"{stage}_ms"] for stage in ("preprocess", "encode", "select", "generate")]
        assert record[side]["ms"] == pytest.approx(sum(stages), abs=0.3)
        assert min(stages) > 0
    assert record["pruned"]["encode_ms"] == record["all"]["encode_ms"], "the tower runs once for both"
    assert (record["tokens"], record["all"]["kept"]) == (2 * 576, 2 * 576)
    assert "visual tokens 1152 -> 126 (10.9%)" in ran.err
    table = run(*common, "--compare").out
    assert [line.split()[-2:] for line in table.splitlines() if line.startswith("visual")] == [["126", "1,152"]]
    rows = ("preprocess, ms", "encode, ms", "select, ms", "generate, ms", "all of it, ms")
    assert [line[:16].strip() for line in table.splitlines()[-5:]] == list(rows)
    assert run(*common, "--compare", "-k", "all").code == 2
