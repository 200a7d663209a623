"""The code for GPUs on a stand-in for one: all tensors are on the right device, and the host seldom waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunesid_cli.inputs.image import Media
from prunesid_cli.models import FAMILIES, SPLICED
from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection import METHODS, select
from prunesid_cli.tokencache import open_cache, read_tokens
from prunesid_cli.types import TokenSet
from tests.accelerator import GPU, MPS, accelerator
from tests.conftest import Run
from tests.models.harness import CPU, GENERATION, PROMPT, QUICK_SPLICED_TYPES, VARIANTS, Model, make_clip
from tests.models.tiny import tiny_model, write_checkpoint
from tests.selection.inputs import attention, scene_like

ROUNDING = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def waits() -> Iterator[Counter[str]]:
    with accelerator() as waits:
        yield waits


def test_the_stand_in_refuses_what_a_gpu_refuses(waits: Counter[str]) -> None:
    on_cpu, on_gpu = torch.ones(3), torch.ones(3, device=GPU)
    assert (on_gpu + 1).device == on_gpu[None].T.device == torch.zeros_like(on_gpu).device == GPU
    for mix in (lambda: on_cpu + on_gpu, lambda: torch.cat([on_gpu, on_cpu]), lambda: on_cpu[on_gpu.long()]):
        with pytest.raises(RuntimeError, match="same device"):
            mix()
    with pytest.raises(TypeError, match="numpy"):
        on_gpu.numpy()
    layer = torch.nn.Linear(3, 3).to(GPU)
    assert layer(on_gpu).device == GPU
    with pytest.raises(RuntimeError, match="same device"):
        layer(on_cpu)


def test_mps_has_no_fp64() -> None:
    with accelerator(MPS):
        on_mps = torch.ones(3, device=MPS)
        assert (on_mps.half() + 1).device == MPS
        for make in (lambda: on_mps.double(), lambda: torch.zeros(2, dtype=torch.float64, device=MPS)):
            with pytest.raises(TypeError, match="float64"):
                make()


def test_the_stand_in_counts_the_waits_of_the_host(waits: Counter[str]) -> None:
    on_gpu = torch.ones(3, device=GPU)
    assert not waits
    for wait in (
        lambda: on_gpu.tolist(),
        lambda: on_gpu.cpu(),
        lambda: float(on_gpu[0]),
        lambda: on_gpu.nonzero(),
        lambda: bool((on_gpu > 0).all()),
        lambda: torch.tensor([1, 2], device=GPU),
        lambda: torch.ones(3).to(GPU),
        lambda: on_gpu[[0, 1]],
    ):
        before = waits.total()
        wait()
        assert waits.total() == before + 1
    before = waits.total()
    assert to_device([1, 2], GPU).device == (on_gpu * 2).device == GPU
    assert waits.total() == before


def make_inputs(num_images: int, width: int) -> tuple[Tensor, Tensor]:
    """Features [B, 64, C] and saliency [B, 64] of some images."""
    features = torch.cat([scene_like(seed, 64, width) for seed in range(num_images)])
    return features, torch.cat([attention(seed, 64) for seed in range(num_images)])


@pytest.mark.parametrize("width", [96, 32])
@pytest.mark.parametrize("method", METHODS)
def test_selection_equals_the_cpu_and_waits_as_often_for_many_images_as_for_one(
    method: str, width: int, waits: Counter[str]
) -> None:
    counts = []
    for num_images in (1, 4, 9):
        features, saliency = make_inputs(num_images, width)
        on_gpu = features.to(GPU), saliency.to(GPU)
        select(*on_gpu, [16] * num_images, method, 1)  # what a process does once is not counted
        waits.clear()
        kept = select(*on_gpu, [16] * num_images, method, 1)
        counts.append(waits.total())
        check_indices(kept, select(features, saliency, [16] * num_images, method, 1))
    assert counts[0] == counts[1] == counts[2] <= 4


def test_images_of_different_budgets_are_selected_from_as_on_the_cpu(waits: Counter[str]) -> None:
    features, saliency = make_inputs(4, 96)
    budgets = [16, 9, 70, 16]
    kept = select(features.to(GPU), saliency.to(GPU), budgets, "prunesid", 1)
    check_indices(kept, select(features, saliency, budgets, "prunesid", 1))


def check_indices(kept: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for indices, cpu_indices in zip(kept, expected, strict=True):
        assert indices.device == GPU
        assert torch.equal(indices.cpu(), cpu_indices)


QUICK = ("internvl", "llava", "llava_next", "llava_onevision", "mgm", "paligemma", "qwen3_vl")
"""Families that are quickly tried: other ones use the same parts of the code for devices."""
NOT_SIMULATED = ("cosmos3_edge", "gemma4")
"""Types whose towers resize in half precision, or call `one_hot`, which asks for the device below Python."""


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param(GPU, torch.float32, id="cuda-fp32"),
        pytest.param(GPU, torch.bfloat16, id="cuda-bf16", marks=pytest.mark.slow),
        pytest.param(MPS, torch.float16, id="mps-fp16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(*each.values, marks=each.marks if each.values[0] in QUICK else [*each.marks, pytest.mark.slow])
        for each in VARIANTS
    ],
)
def test_every_family_keeps_the_same_tokens_and_gives_the_same_answers(
    variant: str, device: torch.device, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Images, and a clip if the family reads clips."""
    if variant.startswith(NOT_SIMULATED):
        pytest.skip("it uses an operation that the stand-in does not simulate")
    if FAMILIES.get(variant) == SPLICED and variant not in QUICK_SPLICED_TYPES and dtype != torch.float32:
        pytest.skip("the code is that of the other types of the generic adapter")
    on_cpu = Model(write_checkpoint(variant, tmp_path / variant), tiny_model(variant), replace(CPU, dtype=dtype))
    media = on_cpu.images() + ([make_clip(1)] if on_cpu.tiny.clip_inputs else [])
    with accelerator(device):
        on_device = replace(on_cpu, placement=replace(on_cpu.placement, device=device))
        items, answers = prune_and_answer(on_device, media)
        assert all(item.tokens.device == device for item in items)
        tokens = [item.tokens.cpu() for item in items]
    expected_items, expected_answers = prune_and_answer(on_cpu, media)
    assert [item.slots for item in items] == [item.slots for item in expected_items]
    for item_tokens, expected_item in zip(tokens, expected_items, strict=True):
        torch.testing.assert_close(item_tokens, expected_item.tokens, **ROUNDING)
    assert answers == expected_answers


def prune_and_answer(model: Model, media: Sequence[Media]) -> tuple[list[TokenSet], list[str]]:
    pruner, language = model.pruner("24"), model.language
    items = pruner.prune(pruner.encode([pruner.preprocess(item) for item in media]))
    prompts = [language.embed(PROMPT, [item]) for item in items]
    return items, [answer.text for answer in language.generate(prompts, GENERATION)]


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "scene0.png", "what is shown?", "--dynamic", "--temperature", "0.7"),
        ("show", "scene0.png", "--groups"),
        ("ask", "scene0.png", "scene1.png", "what differs?", "--method", "prunesid-plus"),
    ],
)
def test_commands_print_the_same(
    command: tuple[str, ...], run: Run, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures[0].parent)
    command = (*command, "-m", "demo", "--dtype", "fp32")
    expected = run(*command, "--device", "cpu")
    with accelerator():
        result = run(*command, "--device", "cuda:0")
    assert (result.code, result.out) == (0, expected.out), result.err


@pytest.mark.slow
def test_a_folder_of_pictures(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """compress and answer, with all their threads, keep the same tokens and give the same answers as on the CPU.

    The host waits as often for a large batch as for a small one. The stand-in computes with the CPU's kernels, so both
    sides round alike on any processor, if their dtypes and batches are the same; hence the options. (By default the CPU
    answers in fp32 and a GPU in the checkpoint's bf16, which rounds so much that an answer may differ.)
    """
    waits_by_batch_size = {}
    for batch_size in (len(pictures), len(pictures) // 2):
        options = ("--dtype", "fp32", "--batch-size", batch_size)
        on_gpu, on_cpu = tmp_path / f"gpu-{batch_size}", tmp_path / f"cpu-{batch_size}"
        compress = ("compress", pictures[0].parent, *options, "--keep", 24, "--out")
        with accelerator() as waits:
            compressed = run(*compress, on_gpu, "--device", "cuda:0")
            waits_by_batch_size[batch_size] = sum(
                count for wait, count in waits.items() if wait.startswith(("read", "copy from"))
            )
            answered = run("answer", on_gpu, PROMPT, *options, "--device", "cuda:0")
        assert (compressed.code, answered.code) == (0, 0), compressed.err + answered.err
        assert run(*compress, on_cpu, "--device", "cpu").code == 0
        expected = run("answer", on_cpu, PROMPT, *options, "--device", "cpu")
        for item, expected_item in zip(cached_tokens(on_gpu), cached_tokens(on_cpu), strict=True):
            assert item.slots == expected_item.slots
            torch.testing.assert_close(item.tokens, expected_item.tokens, **ROUNDING)
        assert len(answered.records) == len(pictures)
        assert [record["answer"] for record in answered.records] == [record["answer"] for record in expected.records]
    one_batch, two_batches = waits_by_batch_size.values()
    assert two_batches == 2 * one_batch > 0


def cached_tokens(folder: Path) -> list[TokenSet]:
    return [tokens for shard, item in open_cache(folder).items() for tokens in read_tokens(shard, [item])]


def test_a_batch_that_does_not_fit_is_halved_and_no_item_is_lost(
    run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    """Batches begin with eight pictures; the memory holds five."""
    options = ("--keep", 24, "--dtype", "fp32", "-m", "demo")
    layer_bytes = 577 * 768 * 4  # the largest tensor of a picture in the layers of the tower
    with accelerator(max_tensor_bytes=5 * layer_bytes):
        on_gpu = run(
            "compress", pictures[0].parent, "--out", tmp_path / "gpu", *options, "--device", "cuda:0", "--usage"
        )
    assert "batches of 4" in on_gpu.err
    on_cpu = run("compress", pictures[0].parent, "--out", tmp_path / "cpu", *options, "--device", "cpu")
    assert on_gpu.code == on_cpu.code == 0, on_gpu.err
    listed = [run("cache", "ls", tmp_path / name, "--json").records for name in ("gpu", "cpu")]
    kept = [[record["kept"] for record in records] for records in listed]
    assert kept == [[24] * len(pictures)] * 2
    with accelerator(max_tensor_bytes=layer_bytes // 2):
        none = run("compress", pictures[0].parent, "--out", tmp_path / "none", *options, "--device", "cuda:0")
    assert (none.code, "not enough memory for one image" in none.err) == (3, True)
