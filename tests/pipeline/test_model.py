"""The Python API: it does what the command line does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import prunesid_cli
from prunesid_cli import METHODS, Budget, load, open_cache, select
from prunesid_cli.errors import CacheError, UsageError
from tests.conftest import Run

PROMPT = "what is shown?"


def test_ask_is_the_command_ask(run: Run, pictures: list[Path]) -> None:
    printed = run("ask", pictures[0], PROMPT, "-m", "demo", "--keep", "64", "--json").records[0]
    answer = load("demo", keep="64").ask(pictures[0], PROMPT)
    assert (answer.text, answer.new_tokens) == (printed["answer"], printed["new_tokens"])


def test_a_picture_in_memory_is_read_as_a_file(pictures: list[Path]) -> None:
    model = load("demo", keep="32")
    (from_file,), (in_memory,) = model.encode(pictures[0]), model.encode(Image.open(pictures[0]))
    assert from_file.slots == in_memory.slots
    assert torch.equal(from_file.tokens, in_memory.tokens)


@pytest.mark.parametrize("dynamic", [pytest.param(None, marks=pytest.mark.slow), True])
def test_compress_writes_the_bytes_of_the_command(
    run: Run, pictures: list[Path], tmp_path: Path, dynamic: bool | None
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    paths = [*pictures[:3], bad]
    options = ["--dynamic"] if dynamic else []
    assert run("compress", *paths, "-m", "demo", "--keep", "48", *options, "--out", tmp_path / "cli").code == 3
    model = load("demo", keep="48", dynamic=dynamic, workers=0 if dynamic else 2)
    first = model.compress(paths, tmp_path / "api")
    assert (first.encoded, first.cached) == ([str(path) for path in pictures[:3]], [])
    assert [source for source, _ in first.failed] == [str(bad)]
    again = model.compress(paths, tmp_path / "api")
    assert (again.encoded, again.cached) == ([], [str(path) for path in pictures[:3]])
    for name in ("prunesid-00000.safetensors", "failures.jsonl"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "api" / name).read_bytes()


def test_options_for_images_and_prompts_are_those_of_the_command(
    run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    path, prompt = tmp_path / "wide.png", "what is </s>?"
    Image.open(pictures[0]).convert("RGB").resize((400, 100)).save(path)
    answers = []
    for options, settings in (
        ((), {}),
        (("--fit", "pad"), {"fit": "pad"}),
        (("--allow-special-tokens",), {"allow_special_tokens": True}),
    ):
        printed = run("ask", path, prompt, "-m", "demo", "--json", *options).records[0]
        model = load("demo", **settings)
        answer = model.ask(path, prompt)
        assert (answer.text, answer.prompt_tokens) == (printed["answer"], printed["prompt_tokens"])
        (item,) = model.encode(path)
        answers.append((item.layout.visible_share, answer.prompt_tokens))
    assert [share for share, _ in answers] == [0.25, 1, 0.25]
    assert answers[0][1] == answers[1][1] > answers[2][1]


def test_answer_is_the_command_answer(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    model = load("demo")
    model.compress(pictures[:4], tmp_path / "cache")
    printed = run("answer", tmp_path / "cache", PROMPT).records
    replies = list(model.answer(tmp_path / "cache", PROMPT))
    assert [reply.answer.text for reply in replies if reply.answer] == [record["answer"] for record in printed]
    assert [item.source for _, item in open_cache(tmp_path / "cache").items()] == [str(path) for path in pictures[:4]]


def test_a_cache_of_another_model_is_refused(llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    load(str(llava)).compress(pictures[0], tmp_path / "cache")
    with pytest.raises(CacheError, match="the cache holds tokens of"):
        next(load("demo").answer(tmp_path / "cache", PROMPT))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kep": "64"}, "no setting 'kep'"),
        ({"keep": "none"}, "cannot read 'none' as a budget"),
        ({"method": "prunesit"}, "no selection method called 'prunesit'"),
        ({"dtype": "fp12"}, "dtype='fp12' is unknown"),
        ({"fit": "squash"}, "fit='squash' is unknown"),
        ({"fps": -1.0}, "-1 is not a rate"),
    ],
)
def test_wrong_settings_are_refused_before_weights_are_read(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        load("demo", **settings)


def test_select_and_budget() -> None:
    features = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    assert "prunesid" in METHODS
    counts = [Budget.parse("25%").tokens(40), 7]
    kept = select(features, None, counts)
    assert [len(indices) for indices in kept] == [10, 7]


def test_importing_the_package_stays_free_of_torch() -> None:
    code = "import sys, prunesid_cli; print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(dir(prunesid_cli)) == set(prunesid_cli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prunesid_cli.nothing
