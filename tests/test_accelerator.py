"""All that runs on a GPU, on a stand-in for one: on the right device everywhere, and seldom waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection import METHODS, select
from prunesid_cli.tokencache import open_cache, read_tokens
from prunesid_cli.types import TokenSet
from tests.accelerator import GPU, MPS, accelerator
from tests.conftest import Run
from tests.models.harness import CPU, GENERATION, PROMPT, VARIANTS, Model, make_clip
from tests.models.tiny import tiny_model, write_checkpoint
from tests.selection.inputs import attention, scene_like

ROUNDING = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def waits() -> Iterator[Counter[str]]:
    with accelerator() as waits:
        yield waits


def test_the_stand_in_refuses_what_a_gpu_refuses(waits: Counter[str]) -> None:
    here, there = torch.ones(3), torch.ones(3, device=GPU)
    assert (there + 1).device == there[None].T.device == torch.zeros_like(there).device == GPU
    for mixed in (lambda: here + there, lambda: torch.cat([there, here]), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    layer = torch.nn.Linear(3, 3).to(GPU)
    assert layer(there).device == GPU
    with pytest.raises(RuntimeError, match="same device"):
        layer(here)


def test_mps_has_no_fp64() -> None:
    with accelerator(MPS):
        there = torch.ones(3, device=MPS)
        assert (there.half() + 1).device == MPS
        for make in (lambda: there.double(), lambda: torch.zeros(2, dtype=torch.float64, device=MPS)):
            with pytest.raises(TypeError, match="float64"):
                make()


def test_the_stand_in_counts_what_a_host_waits_for(waits: Counter[str]) -> None:
    there = torch.ones(3, device=GPU)
    assert not waits
    for look in (
        lambda: there.tolist(),
        lambda: there.cpu(),
        lambda: float(there[0]),
        lambda: there.nonzero(),
        lambda: bool((there > 0).all()),
        lambda: torch.tensor([1, 2], device=GPU),
        lambda: torch.ones(3).to(GPU),
        lambda: there[[0, 1]],
    ):
        before = waits.total()
        look()
        assert waits.total() == before + 1
    before = waits.total()
    assert to_device([1, 2], GPU).device == (there * 2).device == GPU
    assert waits.total() == before


def inputs(images: int, width: int) -> tuple[Tensor, Tensor]:
    """features [B, 64, C], saliency [B, 64]."""
    features = torch.cat([scene_like(seed, 64, width) for seed in range(images)])
    return features, torch.cat([attention(seed, 64) for seed in range(images)])


@pytest.mark.parametrize("width", [96, 32])
@pytest.mark.parametrize("method", METHODS)
def test_selection_is_the_cpus_and_waits_as_often_for_many_images_as_for_one(
    method: str, width: int, waits: Counter[str]
) -> None:
    counts = []
    for images in (1, 4, 9):
        features, saliency = inputs(images, width)
        given = features.to(GPU), saliency.to(GPU)
        select(*given, [16] * images, method, 1)  # what comes once is not the method's
        waits.clear()
        kept = select(*given, [16] * images, method, 1)
        counts.append(waits.total())
        expected = select(features, saliency, [16] * images, method, 1)
        assert all(one.device == GPU for one in kept)
        assert all(torch.equal(one.cpu(), own) for one, own in zip(kept, expected, strict=True))
    assert counts[0] == counts[1] == counts[2] <= 4


def test_images_of_different_budgets_share_the_launches(waits: Counter[str]) -> None:
    features, saliency = inputs(4, 96)
    budgets = [16, 9, 70, 16]
    kept = select(features.to(GPU), saliency.to(GPU), budgets, "prunesid", 1)
    expected = select(features, saliency, budgets, "prunesid", 1)
    assert all(torch.equal(one.cpu(), own) for one, own in zip(kept, expected, strict=True))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param(GPU, torch.float32, id="cuda-fp32"),
        pytest.param(GPU, torch.bfloat16, id="cuda-bf16", marks=pytest.mark.slow),
        pytest.param(MPS, torch.float16, id="mps-fp16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_keeps_and_says_the_same(
    variant: str, device: torch.device, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Pictures, and a clip where the family has any: encoded, pruned, and answered from what was kept."""
    here = Model(write_checkpoint(variant, tmp_path / variant), tiny_model(variant), replace(CPU, dtype=dtype))
    media = here.images() + ([make_clip(1)] if here.tiny.clip_inputs else [])
    with accelerator(device):
        there = replace(here, placement=replace(here.placement, device=device))
        kept, said = pruned_and_answered(there, media)
        assert all(one.tokens.device == device for one in kept)
        rows = [one.tokens.cpu() for one in kept]
    expected, answers = pruned_and_answered(here, media)
    assert [one.slots for one in kept] == [one.slots for one in expected]
    for row, own in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, own.tokens, **ROUNDING)
    assert said == answers


def pruned_and_answered(model: Model, media: list) -> tuple[list[TokenSet], list[str]]:
    pruner, language = model.pruner("24"), model.language
    kept = pruner.prune(pruner.encode([pruner.preprocess(one) for one in media]))
    prompts = [language.embed(PROMPT, [one]) for one in kept]
    return kept, [answer.text for answer in language.generate(prompts, GENERATION)]


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "scene0.png", "what is shown?", "--dynamic", "--temperature", "0.7"),
        ("show", "scene0.png", "--groups"),
        ("ask", "scene0.png", "scene1.png", "what differs?", "--method", "prunesid-plus"),
    ],
)
def test_commands(command: tuple[str, ...], run: Run, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures[0].parent)
    given = (*command, "-m", "demo", "--dtype", "fp32")
    here = run(*given, "--device", "cpu")
    with accelerator():
        there = run(*given, "--device", "cuda:0")
    assert (there.code, there.out) == (0, here.out), there.err


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
                count for wait, count in waits.items() if wait.startswith(("look", "copy from"))
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


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    """Batches begin with eight pictures; here is memory for five."""
    generation = ("--keep", 24, "--dtype", "fp32", "-m", "demo")
    of_one = 577 * 768 * 4  # what the tower makes of a picture within its layers
    with accelerator(most=5 * of_one):
        made = run(
            "compress", pictures[0].parent, "--out", tmp_path / "there", *generation, "--device", "cuda:0", "--usage"
        )
    assert "batches of 4" in made.err
    here = run("compress", pictures[0].parent, "--out", tmp_path / "here", *generation, "--device", "cpu")
    assert made.code == here.code == 0, made.err
    listed = [run("cache", "ls", tmp_path / name, "--json").records for name in ("there", "here")]
    assert [one["kept"] for one in listed[0]] == [one["kept"] for one in listed[1]] == [24] * len(pictures)
    with accelerator(most=of_one // 2):
        none = run("compress", pictures[0].parent, "--out", tmp_path / "none", *generation, "--device", "cuda:0")
    assert (none.code, "not enough memory for one image" in none.err) == (3, True)
