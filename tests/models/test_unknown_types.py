"""Types of models that are in no table: tried once, and refused with a reason if they do not work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models import FAMILIES, OTHER_CUTS, load_family
from prunesid_cli.models.spliced.table import TYPES
from tests.conftest import PROMPT, Run
from tests.models.harness import make_image
from tests.models.tiny import spliced, write_checkpoint

TRYING, EQUAL = "trying this one once", "both halves give the scores of the whole model"
SPLITTABLE = ("aya_vision", "glm4v", "janus", "lighton_ocr")
"""Types whose rows are taken away: features as one tensor and as a list; patches, tiles, padded images and squares."""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    make_image(0, (300, 200)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that remembers what was tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "results"))
    return tmp_path / "results" / "prunesid" / "tried_models.json"


@pytest.mark.parametrize(
    "model_type", [SPLITTABLE[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SPLITTABLE[1:])]
)
def test_a_type_that_can_be_split_is_tried_once(
    run: Run, tmp_path: Path, picture: Path, results: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    folder = write_checkpoint(model_type, tmp_path / "model")
    ask = ("ask", picture, PROMPT, "-m", folder, "--max-new-tokens", 8, "--keep")
    known = run(*ask, "7").out
    monkeypatch.delitem(FAMILIES, model_type)
    monkeypatch.delitem(TYPES, model_type)
    assert "the first run compares its two halves" in run("models", "info", folder).err
    first, second = run(*ask, "7"), run(*ask, "7")
    assert (first.code, first.out, second.code, second.out) == (0, known, 0, known)
    assert TRYING in first.err
    assert EQUAL in first.err
    assert TRYING not in second.err
    assert run("compress", picture, "-m", folder, "-k", "7", "--out", tmp_path / "cache").code == 0
    (answered,) = run("answer", tmp_path / "cache", PROMPT, "--max-new-tokens", 8).records
    assert f"{answered['answer']}\n" == known
    results.write_text("{")  # damaged: it is tried again
    assert TRYING in run(*ask, "7").err


def test_a_type_whose_halves_differ_from_the_whole_is_refused(
    run: Run, tmp_path: Path, picture: Path, results: Path
) -> None:
    """Idefics2 writes a space after an image, depending on the text that follows."""
    folder = tmp_path / "model"
    folder.mkdir()
    spliced.idefics2.write(folder)
    for _ in range(2):
        result = run("ask", picture, PROMPT, "-m", folder)
        assert (result.code, result.out) == (1, "")
        assert TRYING in result.err
        assert "'idefics2' answer otherwise in two halves than as a whole: scores differ by " in result.err
    assert not results.exists()


def test_a_type_with_other_arguments_is_refused(
    run: Run, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Video-LLaVA has other names for pixels."""
    monkeypatch.delitem(FAMILIES, "video_llava")
    result = run("ask", picture, PROMPT, "-m", write_checkpoint("video_llava", tmp_path / "model"))
    assert (result.code, result.out) == (1, "")
    assert "'video_llava' do not run in two halves: " in result.err


@pytest.mark.parametrize(("reason", "types"), OTHER_CUTS.items())
def test_types_that_cannot_be_split_are_refused_by_name(
    run: Run, tmp_path: Path, picture: Path, reason: str, types: tuple[str, ...]
) -> None:
    for model_type in types:
        with pytest.raises(UnsupportedModel, match=f"{model_type!r} {reason}"):
            load_family(model_type)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": types[0]}))
    result = run("ask", picture, PROMPT, "-m", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert reason in result.err


def test_a_type_that_transformers_does_not_know_is_refused(run: Run, tmp_path: Path, picture: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "not_yet_invented"}))
    result = run("ask", picture, PROMPT, "-m", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert "'not_yet_invented'" in result.err
    assert f"pip install -U 'transformers>{transformers.__version__}'" in result.err.splitlines()[-1]
