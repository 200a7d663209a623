"""Files of weights that are not whole are named, with what to do; never a fault of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration

from tests.conftest import Run

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
CUT, AGAIN = "is cut short, to {} bytes", "download the model again"


@pytest.mark.parametrize(
    ("data", "problem", "hint"),
    [
        (lambda whole: whole[: len(whole) // 2], "is cut short, to {} of ", AGAIN),
        (lambda whole: whole[:-1], "is cut short, to {} of ", AGAIN),
        (lambda whole: whole[:100], CUT, AGAIN),
        (lambda whole: b"\0", CUT, AGAIN),
        (lambda whole: b"", CUT, AGAIN),
        (lambda whole: LFS, "is a Git LFS pointer, not the weights", "git lfs pull"),
        (lambda whole: b"<!doctype html>" * 9, "is no safetensors file", AGAIN),
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_that_are_not_whole(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, data, problem: str, hint: str, shards: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    if shards > 1:
        model = LlavaForConditionalGeneration.from_pretrained(llava)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=(llava / "model.safetensors").stat().st_size // 2)
    path = sorted(folder.glob("*.safetensors"))[-1]
    assert path.name.startswith("model-0000") == (shards > 1)
    bad = data(path.read_bytes())
    path.write_bytes(bad)
    ran = run("ask", "-m", folder, pictures[0], "what is shown?")
    assert (ran.code, ran.out) == (1, "")
    assert f"error: {folder}: {path.name} {problem.format(f'{len(bad):,}')}" in ran.err, ran.err
    assert hint in ran.err.splitlines()[-1]
