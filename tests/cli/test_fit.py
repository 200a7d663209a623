"""--fit, and what is said about images that a model crops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from prunesid_cli.cli.notices import warn_if_cropped
from tests.conftest import Run

CROPPED = "cropped: "


@pytest.fixture
def banners(tmp_path: Path) -> list[Path]:
    """A wide image, a tall one and a square one."""
    paths = []
    for number, size in enumerate(((1200, 300), (200, 400), (64, 64))):
        paths.append(tmp_path / f"{number}.png")
        Image.radial_gradient("L").convert("RGB").resize(size).save(paths[-1])
    return paths


def warnings(err: str) -> list[str]:
    return [line for line in err.splitlines() if CROPPED in line]


def test_ask_says_what_is_cropped(run: Run, banners: list[Path]) -> None:
    ran = run("ask", *banners, "what?", "--json", "--max-new-tokens", 1)
    (warning,) = warnings(ran.err)
    assert "2 of 3 inputs" in warning
    assert "62% of their area, at most 75% of one" in warning
    assert warning.endswith("--fit pad")
    assert ran.records[0]["seen"] == [0.25, 0.5, 1]
    for more in ((banners[2], "what?"), (*banners, "what?", "--fit", "pad")):
        ran = run("ask", *more, "--json", "--max-new-tokens", 1)
        assert (ran.code, warnings(ran.err), "seen" in ran.records[0]) == (0, [], False)


@pytest.mark.parametrize(
    ("seen", "lost"),
    [
        ([0.25], "75% of its area;"),
        ([0.001], "99% of its area;"),
        ([0.0], "100% of its area;"),
        ([0.994], "1% of its area;"),
        ([0.25, 1.0], "75% of its area;"),
        ([0.002, 0.004], "99% of their area, at most 99% of one;"),
    ],
)
def test_lost_shares(seen: list[float], lost: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn_if_cropped(seen, 2)
    assert f"of 2 inputs; the model does not see {lost} to keep" in capsys.readouterr().err


def test_compress_says_once_what_is_cropped(run: Run, banners: list[Path], tmp_path: Path) -> None:
    compress = ("compress", *banners, "--out", tmp_path / "c", "--json", "--batch-size", 1)
    ran = run(*compress)
    (warning,) = warnings(ran.err)
    assert "2 of 3 inputs" in warning
    assert [record.get("seen") for record in ran.records] == [0.25, 0.5, None]
    assert warnings(run(*compress).err) == []  # nothing was encoded


def test_fit_is_an_option_of_a_cache(run: Run, banners: list[Path], tmp_path: Path) -> None:
    compress = ("compress", *banners, "--out")
    for folder, options in (("crop", ()), ("same", ("--fit", "crop")), ("pad", ("--fit", "pad"))):
        ran = run(*compress, tmp_path / folder, *options)
        assert (ran.code, len(warnings(ran.err))) == (0, int(folder != "pad"))
        info = run("cache", "info", tmp_path / folder, "--json").records[0]
        assert info.get("fit") == ("pad" if folder == "pad" else None)
    shards = [(tmp_path / name / "prunesid-00000.safetensors").read_bytes() for name in ("crop", "same", "pad")]
    assert shards[0] == shards[1]
    assert [b'\\"fit\\":' in shard for shard in shards] == [False, False, True]
    other = run(*compress, tmp_path / "pad")
    assert (other.code, "--fit pad" in other.err) == (1, True)
    other = run(*compress, tmp_path / "crop", "--fit", "pad")
    assert (other.code, "--fit crop" in other.err) == (1, True)
    again = run(*compress, tmp_path / "pad", "--fit", "pad")
    assert (again.code, "nothing to do" in again.err) == (0, True)
    merged = run("cache", "merge", tmp_path / "crop", tmp_path / "pad", "--out", tmp_path / "merged")
    assert (merged.code, "fit" in merged.err) == (1, True)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_answers_are_those_of_ask(run: Run, llava: Path, banners: list[Path], tmp_path: Path, fit: str) -> None:
    options = ("-m", llava, "--fit", fit)
    assert run("compress", *banners, "--out", tmp_path / "c", *options).code == 0
    answer = ("answer", tmp_path / "c", "what?", "--max-new-tokens", 8)
    answers = {record["source"]: record["answer"] for record in run(*answer).records}
    for path in banners:
        asked = run("ask", path, "what?", "--max-new-tokens", 8, "--json", *options).records[0]
        assert answers[str(path)] == asked["answer"]
    assert run(*answer, "--out", tmp_path / "answers").code == 0
    assert ("padded" in (tmp_path / "answers").read_text()) == (fit == "pad")


def test_evaluate_says_what_is_cropped_also_when_it_continues(run: Run, banners: list[Path], tmp_path: Path) -> None:
    data = [{"media": [str(path)], "prompt": "what?", "answer": "a"} for path in banners]
    data.append({"media": [str(banners[0]), str(banners[2])], "prompt": "what?", "answer": "a"})
    (tmp_path / "data").write_text("".join(json.dumps(record) + "\n" for record in data))
    evaluate = ("evaluate", tmp_path / "data", "-k", 8, "--json", "--max-new-tokens", 1, "--out", tmp_path / "answers")
    for _ in range(2):
        ran = run(*evaluate)
        (warning,) = warnings(ran.err)
        assert "3 of 4 records" in warning
        assert {(record["cropped"], round(record["seen"], 4)) for record in ran.records} == {(3, 0.4583)}
    padded = run(*evaluate, "--fit", "pad")
    assert (padded.code, warnings(padded.err), "seen" in padded.records[0]) == (0, [], False)
    size = (tmp_path / "answers").stat().st_size
    assert run(*evaluate, "--fit", "pad").code == 0
    assert (tmp_path / "answers").stat().st_size == size


def test_an_unknown_fit_is_refused(run: Run, banners: list[Path]) -> None:
    assert run("ask", banners[0], "what?", "--fit", "squash").code == 2
