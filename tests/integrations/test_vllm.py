"""`answer --engine vllm`: the answers of the built-in engine, for every type that vLLM answers, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from prunesid_cli.errors import ModelError, UnsupportedModel, UsageError
from prunesid_cli.integrations.vllm.support import (
    EMBEDS_TYPES,
    MROPE_CLASSES,
    OTHER_REASONS,
    check_generation,
    check_model,
    check_packages,
)
from prunesid_cli.models import FAMILIES
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.types import Generation
from tests.conftest import CommandResult, Run, run_command
from tests.films import film
from tests.models.harness import make_image
from tests.models.tiny import tiny_model, write_checkpoint
from tests.models.tiny.base import adjusted

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
SCHEMA = '{"type": "array", "items": {"enum": [1, 22, 345]}, "minItems": 2, "maxItems": 3}'
PROMPTS = ("what is shown?", "a red square, first and then a star?", "count", "what is <image> then?")


def enlarge(config: Any) -> None:
    """Heads of 32 numbers, the fewest that vLLM has kernels for on a CPU."""
    text, vision = config.get_text_config(), config.vision_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = 128, 4, 2
    if hasattr(text, "head_dim"):
        text.head_dim = 32
    if config is not text and hasattr(config, "hidden_size"):
        config.hidden_size = 128
    positions = getattr(text, "rope_parameters", None) or {}
    if "mrope_section" in positions:
        positions["mrope_section"] = [6, 5, 5] if positions.get("mrope_interleaved") else [4, 6, 6]
    if hasattr(vision, "out_hidden_size"):
        vision.out_hidden_size = 128
    elif config.model_type == "qwen2_vl":
        vision.hidden_size = 128


def run_with_vllm(*args: object, **environment: str) -> CommandResult:
    """In a process of its own, which can hold one engine."""
    command = [sys.executable, "-W", "ignore", "-m", "prunesid_cli", *map(str, args), "--engine", "vllm"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=600)
    return CommandResult(done.returncode, done.stdout, done.stderr)


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "keep"),
    [
        *((model_type, "23") for model_type in sorted(EMBEDS_TYPES | set(MROPE_CLASSES))),
        *((model_type, "all") for model_type in ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl")),
    ],
)
def test_answers_are_those_of_the_built_in_engine(model_type: str, keep: str, run: Run, tmp_path: Path) -> None:
    """Images of several grids, a clip, and prompts with a common beginning, which is read once."""
    with adjusted(enlarge):
        model = write_checkpoint(model_type, tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number, size in enumerate(((336, 336), (500, 200), (90, 400))):
        make_image(number, size).save(tmp_path / "images" / f"{number}.png")
    has_clip = tiny_model(model_type).clip_inputs is not None
    if has_clip:
        film(tmp_path / "images" / "clip.mp4")
    cache, prompts = tmp_path / "cache", write_prompts(tmp_path)
    command = ("compress", tmp_path / "images", "-m", model, "-k", keep, "--frames", 4, "--out", cache)
    compressed = run(*command)
    assert compressed.code == 0, compressed.err
    assert (len(run("cache", "ls", cache, "--json").records) == 4) == has_clip
    command = (cache, "--prompts", prompts, "--max-new-tokens", 12)
    expected = run("answer", *command).records
    assert len({record["answer"] for record in expected}) > 1
    ran = run_with_vllm("answer", *command, "--usage")
    assert ran.code == 0, ran.err
    assert [without_time(record) for record in ran.records] == [without_time(record) for record in expected]
    assert keep == "23" or " 0% of" not in ran.err
    assert re.search(
        r"answers? in .* \([\d.]+/s\)   vLLM: \d+% of [\d,]+ prompt tokens .*   memory for [\d,]+ tokens", ran.err
    )


def without_time(record: dict) -> dict:
    return {name: value for name, value in record.items() if name != "ms"}


@pytest.fixture(scope="module")
def cache(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes, compressed for the embedded model, and a file that is no image."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "bad.png").write_bytes(b"no image")
    assert run_command("compress", *pictures, folder / "bad.png", "-k", "40", "--out", folder / "cache").code == 3
    return folder / "cache"


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--dtype", "bf16"), id="bf16"),
        pytest.param(("--engine-args", "max_num_batched_tokens=32", "--engine-args", "max_num_seqs=4"), id="chunks"),
        pytest.param({"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, id="processes"),
        pytest.param(("--schema", SCHEMA), id="schema"),
    ],
)
def test_answers_do_not_depend_on_how_the_engine_runs(
    cache: Path, options: tuple[str, ...] | dict[str, str], run: Run, tmp_path: Path
) -> None:
    options, environment = ((), options) if isinstance(options, dict) else (options, {})
    command = (cache, "--prompts", write_prompts(tmp_path))
    expected = run("answer", *command, *(() if "--engine-args" in options else options))
    ran = run_with_vllm("answer", *command, *options, **environment)
    assert (ran.code, expected.code) == (0, 0), ran.err
    assert [without_time(record) for record in ran.records] == [without_time(record) for record in expected.records]


@needs_vllm
@pytest.mark.slow
def test_one_engine_continues_what_the_other_began(cache: Path, run: Run, tmp_path: Path) -> None:
    """And a prompt that is too long fails alone."""
    prompts = write_prompts(tmp_path)
    expected, out = tmp_path / "expected.jsonl", tmp_path / "answers.jsonl"
    assert run("answer", cache, "--prompts", prompts, "--out", expected).code == 0
    first = tmp_path / "first.jsonl"
    first.write_text("".join(prompts.read_text().splitlines(keepends=True)[:2]))
    assert run("answer", cache, "--prompts", first, "--out", out).code == 0
    ran = run_with_vllm("answer", cache, "--prompts", prompts, "--out", out)
    assert ran.code == 0, ran.err
    assert "20 were there" in ran.err
    files = [[without_time(json.loads(line)) for line in path.read_text().splitlines()] for path in (out, expected)]
    assert files[0] == files[1]
    with prompts.open("a") as file:
        file.write(json.dumps({"prompt": "what is shown? " * 40}) + "\n")
    ran = run_with_vllm("answer", cache, "--prompts", prompts, "--engine-args", "max_model_len=256")
    errors = [record for record in ran.records if "error" in record]
    assert (ran.code, len(ran.records), len(errors)) == (3, 50, 10), ran.err
    assert "for its answer: more than 256" in errors[0]["error"]
    assert "--engine-args max_model_len=" in errors[0]["hint"]


@needs_vllm
@pytest.mark.slow
def test_evaluations_are_those_of_the_built_in_engine(pictures: list[Path], run: Run, tmp_path: Path) -> None:
    """And a record that is too long fails alone."""
    prompts = (*PROMPTS[:2], "what is shown? " * 40)
    records = [{"media": str(picture), "prompt": prompt} for picture in pictures[:4] for prompt in prompts]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ("evaluate", data, "--keep", "all,40", "--method", "prunesid,random", "--json", "--out")
    assert run(*command, tmp_path / "expected.jsonl").code == 0
    engine_args = ("--engine-args", "max_model_len=768")
    ran = run_with_vllm(*command, tmp_path / "answers.jsonl", *engine_args)
    assert ran.code == 3, ran.err
    assert ran.err.count("for its answer: more than 768") == 4
    found, expected = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("answers", "expected")
    )
    short = [record for record in expected if record["line"] % 3]
    assert len(short) == 4 * 2 * 3
    assert found == short


@needs_vllm
@pytest.mark.slow
def test_a_wrong_argument_is_refused(cache: Path) -> None:
    ran = run_with_vllm("answer", cache, "what is shown?", "--engine-args", "no_such_argument=1")
    assert (ran.code, ran.out) == (2, "")
    assert "no_such_argument" in ran.err


@pytest.mark.parametrize("model_type", sorted(model_type for types in OTHER_REASONS.values() for model_type in types))
def test_types_that_vllm_reads_otherwise_are_refused(model_type: str) -> None:
    checkpoint = Checkpoint("a/model", "a/model", "main", None, model_type, {})
    with pytest.raises(UnsupportedModel, match=f"of type '{model_type}'") as refused:
        check_model(checkpoint)
    assert refused.value.hint == "leave out --engine vllm"


def test_each_type_is_answered_or_refused_by_name() -> None:
    refused = {model_type for types in OTHER_REASONS.values() for model_type in types}
    assert not refused & (EMBEDS_TYPES | set(MROPE_CLASSES))
    assert refused | EMBEDS_TYPES | set(MROPE_CLASSES) <= set(FAMILIES)


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1.2}, {"num_beams": 4}, {"no_repeat_ngram_size": 3}, {"suppress_tokens": [7]}]
)
def test_settings_that_change_greedy_answers_are_refused(settings: dict[str, object]) -> None:
    plain = GenerationConfig().to_dict()
    check_generation(Generation(), plain)
    with pytest.raises(UsageError, match=next(iter(settings))):
        check_generation(Generation(), plain | settings)


def test_sampling_is_refused() -> None:
    with pytest.raises(UsageError, match="samples otherwise"):
        check_generation(Generation(temperature=0.7), {})


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("transformers<2", r"vllm 0\.99 needs transformers<2, and [\d.]+ is there"),
        ("torch>=99", r"vllm 0\.99 needs torch>=99, and [\d.+a-z]+ is there"),
    ],
)
def test_packages_that_clash_are_named(
    needs: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that says of itself what it needs."""
    folder = tmp_path / "vllm-0.99.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: 0.99\nRequires-Dist: {needs}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=message) as refused:
        check_packages()
    assert f"pip install '{needs}'" in refused.value.hint


def test_what_is_missing_is_said(cache: Path, run: Run) -> None:
    ran = run("answer", cache, "what is shown?", "--engine-args", "tensor_parallel_size=2")
    assert (ran.code, ran.out) == (2, "")
    assert "--engine vllm" in ran.err
    ran = run("answer", cache, "what is shown?", "--engine", "vllm", "--engine-args", "tensor_parallel_size")
    assert (ran.code, ran.out) == (2, "")
    assert "NAME=VALUE" in ran.err
    if find_spec("vllm") is None:
        ran = run("answer", cache, "what is shown?", "--engine", "vllm")
        assert (ran.code, ran.out) == (1, "")
        assert "pip install 'prunesid[vllm]'" in ran.err
