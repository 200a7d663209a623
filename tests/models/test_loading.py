"""Damaged weights give an error that names the file and says what to do; attention that a model does not support."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration

from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import loading_error, resolve
from tests.conftest import PROMPT, Run, run_command
from tests.models.harness import CPU
from tests.models.tiny import write_checkpoint

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


@pytest.mark.parametrize("stdin", [b"y\n" * 9, b""])
def test_the_code_of_a_model_never_runs(stdin: bytes, tmp_path: Path, run: Run, pictures: list[Path]) -> None:
    """Not even if stdin says yes to what transformers would ask. The classes of transformers are used instead."""
    folder, trace = write_checkpoint("llava", tmp_path / "model"), tmp_path / "trace"
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    names = {"config": "AutoConfig", "processor_config": "AutoProcessor", "tokenizer_config": "AutoTokenizer"}
    for file, name in names.items():
        settings = json.loads((folder / f"{file}.json").read_text())
        settings["auto_map"] = {name: ["own.Own", "own.Own"] if name == "AutoTokenizer" else "own.Own"}
        (folder / f"{file}.json").write_text(json.dumps(settings))
    image_processor = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    image_processor["auto_map"] = {"AutoImageProcessor": "own.Own"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    result = run_command("ask", pictures[0], PROMPT, "-m", folder, "--max-new-tokens", 1, stdin=stdin)
    assert result.code == 0, result.err
    assert not trace.exists()
    assert "trust_remote_code" not in result.out + result.err


def test_a_model_that_needs_its_own_code_is_refused() -> None:
    checkpoint = resolve("demo")
    error = loading_error(checkpoint, "cannot load the processor of x", ValueError("set `trust_remote_code=True`"))
    assert "prunesid runs no such code" in error.problem
    assert error.hint


@pytest.mark.parametrize("variant", ["llava-gemma2", "internvl-gpt_oss", "paligemma-two"])
def test_each_part_of_a_model_runs_with_the_attention_that_it_supports(
    run: Run, pictures: list[Path], tmp_path: Path, variant: str
) -> None:
    folder = write_checkpoint(variant, tmp_path / "model")
    ask = ("ask", pictures[0], "what?", "-m", folder, "--max-new-tokens", 4, "--attn")
    auto, eager = run(*ask, "auto"), run(*ask, "eager")
    assert (auto.code, eager.code, auto.out) == (0, 0, eager.out)
    checkpoint = resolve(str(folder))
    family = load_family(checkpoint.model_type)
    tower = family.load_vision_half(checkpoint, CPU).model.config.vision_config
    text = family.load_language_half(checkpoint, CPU).model.config.text_config
    assert (tower._attn_implementation, text._attn_implementation) == ("sdpa", "eager")


def test_an_attention_that_a_model_does_not_support_is_not_the_fault_of_its_files(
    run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    folder = write_checkpoint("internvl-gpt_oss", tmp_path / "model")
    asked = run("ask", pictures[0], "what?", "-m", folder, "--attn", "sdpa")
    assert (asked.code, "does not run with sdpa attention" in asked.err) == (1, True)
    assert asked.err.splitlines()[-1].endswith("leave out --attn")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", "[]"),
        ("tokenizer_config.json", "[" * 100_000),
        ("processor_config.json", "[" * 100_000),
        ("chat_template.jinja", "{{ ''.__class__.__mro__ }}"),
        ("chat_template.jinja", "{{ nothing.at.all }}"),
    ],
)
def test_files_of_a_model_that_cannot_be_right(
    file: str, text: str, tmp_path: Path, run: Run, pictures: list[Path]
) -> None:
    folder = write_checkpoint("llava", tmp_path / "model")
    (folder / file).write_text(text)
    result = run("ask", pictures[0], PROMPT, "-m", folder, "--max-new-tokens", 1)
    assert (result.code, "bug" in result.err, "hint: " in result.err) == (1, False, True), result.err
