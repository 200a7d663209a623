"""The chains under pressure: little memory, damaged inputs under --dynamic, a second writer, prompts from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import CacheError
from prunesid_cli.memory import within_memory
from prunesid_cli.tokencache import CacheWriter, open_cache
from tests.conftest import Run

ASK = "what is shown?"


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_halved(room: int) -> None:
    seen: list[int] = []

    def work(some: Sequence[int]) -> list[int]:
        if len(some) > room:
            raise torch.OutOfMemoryError
        seen.append(len(some))
        return [10 * one for one in some]

    assert within_memory(work, range(7), lambda one: -1) == [10 * one for one in range(7)]
    assert max(seen) <= room


def test_one_that_never_fits_costs_itself_alone() -> None:
    def work(some: Sequence[int]) -> list[int]:
        if 3 in some:
            raise torch.OutOfMemoryError
        return list(some)

    assert within_memory(work, range(6), lambda one: -one) == [0, 1, 2, -3, 4, 5]


def test_one_writer_at_a_time(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    assert run("compress", pictures[0], "-m", llava, "--out", tmp_path).code == 0
    found = open_cache(tmp_path).run
    assert found
    first = CacheWriter(tmp_path, found, "0.0")
    with pytest.raises(CacheError, match="another run is writing"):
        CacheWriter(tmp_path, found, "0.0")
    refused = run("compress", pictures[1], "-m", llava, "--out", tmp_path)
    assert (refused.code, "another run is writing" in refused.err) == (1, True)
    first.close()
    assert run("compress", pictures[1], "-m", llava, "--out", tmp_path).code == 0


def test_a_cls_token_that_is_not_finite_is_found(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """A tower may overflow in the CLS token alone."""
    from dataclasses import replace

    from prunesid_cli.errors import NonFiniteError
    from prunesid_cli.families import load_family
    from prunesid_cli.families.checkpoint import resolve
    from prunesid_cli.families.loading import load_config, place
    from prunesid_cli.media import load_image
    from prunesid_cli.pruner import Pruner
    from prunesid_cli.selection.budget import Budget

    checkpoint = resolve(str(llava))
    vision = load_family("llava").vision(checkpoint, place("cpu", "auto", "auto", load_config(checkpoint)))
    pruner = Pruner(vision, Budget.parse("64"), "prunesid", ())
    first, second = pruner.encode([vision.preprocess(load_image(path)) for path in pictures[:2]])
    (segment,) = second.segments
    assert segment.summary is not None
    summary = segment.summary.clone()
    summary[0] = float("inf")
    with pytest.raises(NonFiniteError) as error:
        pruner.keep([first, replace(second, segments=(replace(segment, summary=summary),))], [64, 64])
    assert error.value.rows == [1]


@pytest.fixture
def cache(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> Path:
    assert run("compress", *pictures[:2], "-m", llava, "--out", tmp_path / "c").code == 0
    return tmp_path / "c"


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": null}',
        '{"prompt": " "}',
        '{"prompt": 3}',
        '{"prompt": "x", "source": ["y"]}',
        '{"prompt": "<image>"}',
    ],
)
def test_one_bad_prompt_is_found_before_any_answer(run: Run, cache: Path, tmp_path: Path, line: str) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "what is shown?"}\n' + line + "\n")
    ran = run("answer", cache, "--prompts", prompts)
    assert (ran.code, ran.out) == (2, "")


def test_prompts_keep_their_characters(run: Run, cache: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    odd = "what\u2028is \u0085shown?"
    prompts.write_text("\ufeff" + json.dumps({"prompt": odd}, ensure_ascii=False), encoding="utf-8")
    assert [record["prompt"] for record in run("answer", cache, "--prompts", prompts).records] == [odd, odd]


def test_a_prompt_from_stdin(run: Run, cache: Path) -> None:
    piped = run("answer", cache, "-", stdin=b"what is shown?\n")
    assert [r["prompt"] for r in piped.records] == [ASK, ASK]
    assert run("answer", cache, "-", stdin=b" \n").code == 2
