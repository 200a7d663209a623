"""A damaged file of weights gives an error that names it and says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration

from tests.conftest import Run

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
CUT_SHORT, REINSTALL = "is cut short, to {} bytes", "download the model again"


@pytest.mark.parametrize(
    ("damage", "problem", "hint"),
    [
        (lambda data: data[: len(data) // 2], "is cut short, to {} of ", REINSTALL),
        (lambda data: data[:-1], "is cut short, to {} of ", REINSTALL),
        (lambda data: data[:100], CUT_SHORT, REINSTALL),
        (lambda data: b"\0", CUT_SHORT, REINSTALL),
        (lambda data: b"", CUT_SHORT, REINSTALL),
        (lambda data: LFS_POINTER, "is a Git LFS pointer, not the weights", "git lfs pull"),
        (lambda data: b"<!doctype html>" * 9, "is no safetensors file", REINSTALL),
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_damaged_weights(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, damage, problem: str, hint: str, shards: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    if shards > 1:
        model = LlavaForConditionalGeneration.from_pretrained(llava)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=(llava / "model.safetensors").stat().st_size // 2)
    path = sorted(folder.glob("*.safetensors"))[-1]
    assert path.name.startswith("model-0000") == (shards > 1)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    ran = run("ask", "-m", folder, pictures[0], "what is shown?")
    assert (ran.code, ran.out) == (1, "")
    assert f"error: {folder}: {path.name} {problem.format(f'{len(damaged):,}')}" in ran.err, ran.err
    assert hint in ran.err.splitlines()[-1]
