"""The chains under pressure: work ahead and behind, batches that grow, little memory, a second writer, odd prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesid_cli.errors import CacheError
from prunesid_cli.pipeline.load import LoadedInput
from prunesid_cli.runtime.background_writer import BackgroundWriter
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.runtime.prefetch import THREADS, Prefetcher, batches_of
from prunesid_cli.runtime.shutdown import StopRequest
from prunesid_cli.tokencache import CacheWriter, open_cache
from prunesid_cli.types import Layout, Pixels, Provenance, Region
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

    assert run_in_halves_on_oom(work, range(7), lambda one: -1) == [10 * one for one in range(7)]
    assert max(seen) <= room


def test_one_that_never_fits_costs_itself_alone() -> None:
    def work(some: Sequence[int]) -> list[int]:
        if 3 in some:
            raise torch.OutOfMemoryError
        return list(some)

    assert run_in_halves_on_oom(work, range(6), lambda one: -one) == [0, 1, 2, -3, 4, 5]


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
    from prunesid_cli.inputs.image import load_image
    from prunesid_cli.models import load_family
    from prunesid_cli.models.loading.checkpoint import resolve
    from prunesid_cli.models.loading.placement import choose_placement
    from prunesid_cli.models.loading.weights import load_config
    from prunesid_cli.pipeline.pruner import Pruner
    from prunesid_cli.selection.budget import Budget

    checkpoint = resolve(str(llava))
    vision = load_family("llava").load_vision_half(checkpoint, choose_placement("cpu", "auto", "auto", load_config(checkpoint)))
    pruner = Pruner(vision, Budget.parse("64"), "prunesid", ())
    first, second = pruner.encode([vision.preprocess(load_image(path)) for path in pictures[:2]])
    (segment,) = second.segments
    assert segment.cls is not None
    cls = segment.cls.clone()
    cls[0] = float("inf")
    with pytest.raises(NonFiniteError) as error:
        pruner.keep([first, replace(second, segments=(replace(segment, cls=cls),))], [64, 64])
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


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_batches_are_filled_in_order(counts: list[int], size: int, depth: int) -> None:
    """By what the tower sees of each item, and of one item at least."""
    started, taken = [0], [0]

    def work(number: int) -> tuple[int, int]:
        started[0] += 1
        assert started[0] - taken[0] <= depth + 7 + 1, "beside a batch and the item that overfills it"
        return number, counts[number]

    stop = StopRequest()
    with Prefetcher(range(len(counts)), work, lambda one: 1, lambda: depth, stop) as ahead:
        found = []
        for batch in batches_of(ahead, lambda: size, lambda one: one[1], 7, stop):
            found.append(batch)
            taken[0] += len(batch)
            assert len(batch) == 1 or sum(count for _, count in batch) <= size
    assert [number for batch in found for number, _ in batch] == list(range(len(counts)))
    for batch, following in pairwise(found):
        room = size - sum(count for _, count in batch)
        assert following[0][1] > room or len(batch) == 7, "a batch was given though the next item fitted in"


def test_a_clip_counts_its_frames() -> None:
    frames = tuple(Region(64 * i, 8, 8, 8, time=float(i)) for i in range(32))
    pixels = Pixels({"pixel_values": torch.zeros(32, 3, 8, 8)}, Layout("<video>", (2048,), frames))
    clip = LoadedInput(0, Provenance(source="clip.mp4", digest="", size=(8, 8), notes=()), pixels)
    assert (clip.regions, clip.bytes) == (32, 32 * 3 * 8 * 8 * 4)


def test_what_waits_is_bounded_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunesid_cli.runtime.prefetch.BYTES", 10)
    started = list[int]()
    with Prefetcher(
        range(50), lambda one: started.append(one) or one, lambda one: 4, lambda: 40, StopRequest()
    ) as ahead:
        ahead.take()
        time.sleep(0.3)
        assert len(started) <= 1 + 10 // 4 + 1 + THREADS
        assert [ahead.take() for _ in range(49)] == list(range(1, 50))


def test_a_fault_ahead_comes_in_its_turn() -> None:
    def work(number: int) -> int:
        return 6 // (number - 3)

    with Prefetcher(range(9), work, lambda one: 1, lambda: 9, StopRequest()) as ahead:
        assert [ahead.take() for _ in range(3)] == [-2, -3, -6]
        with pytest.raises(ZeroDivisionError):
            ahead.take()


def test_writing_behind_waits_and_tells_its_error() -> None:
    done = list[int]()
    with BackgroundWriter() as behind:
        for number in range(9):
            behind.submit(partial(done.append, number))
    assert done == list(range(9))
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as behind:
        behind.submit(lambda: 1 // 0)
        behind.submit(partial(done.append, 9))
    assert done == list(range(9))
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as behind:
        for _ in range(9):
            behind.submit(lambda: 1 // 0)
            time.sleep(0.01)
        pytest.fail("the run went on")


def test_what_waits_for_more_is_saved_meanwhile() -> None:
    done = list[str]()
    with BackgroundWriter(lambda: done.append("idle"), 0.05) as behind:
        behind.submit(lambda: done.append("call"))
        time.sleep(0.5)
    assert done[:2] == ["call", "idle"] or done[:3] == ["idle", "call", "idle"]


def sizes(pace: BatchSizeTuner, seconds: Callable[[int], float], batches: int = 60) -> list[int]:
    seen = []
    for _ in range(batches):
        seen.append(pace.size)
        pace.record(pace.size, seconds(pace.size))
    return seen


def test_batches_grow_while_that_pays() -> None:
    def levels_off_at(most: int) -> Callable[[int], float]:
        return lambda size: max(1.0, size / most)

    assert sizes(BatchSizeTuner(8, 1024), levels_off_at(64))[-1] == 64
    assert sizes(BatchSizeTuner(8, 1024), lambda size: 1.0)[-1] == 1024
    assert sizes(BatchSizeTuner(8, 1024), lambda size: size * 1.0)[-1] == 8
    assert set(sizes(BatchSizeTuner.fixed(5), lambda size: 1.0)) == {5}
    assert sizes(BatchSizeTuner(8, 1024), levels_off_at(64), 500)[60:] == [64] * 440


def test_batches_that_do_not_fit_are_halved_for_good() -> None:
    pace = BatchSizeTuner(8, 1024)
    sizes(pace, lambda size: 1.0, 12)
    assert pace.size == 32
    pace.shrink(32)
    assert set(sizes(pace, lambda size: 1.0)) == {16}
    fixed = BatchSizeTuner.fixed(1)
    fixed.shrink(1)
    assert fixed.size == 1


def test_one_large_item_is_a_measure_of_its_own_size() -> None:
    pace = BatchSizeTuner(8, 1024)
    for _ in range(40):
        pace.record(32, 1.0)
    assert pace.size == 64, "two at once are what comes next"
    for _ in range(8):
        pace.record(64, 2.0)
    assert pace.size == 32


def test_a_batch_that_did_not_fit_is_told_once() -> None:
    told = list[int]()

    def work(some: Sequence[int]) -> list[int]:
        if len(some) > 1:
            raise RuntimeError("MPS backend out of memory")
        return list(some)

    assert run_in_halves_on_oom(work, range(8), lambda one: -1, lambda: told.append(1)) == list(range(8))
    assert told == [1]

    def fail(some: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_in_halves_on_oom(fail, range(8), lambda one: -1)
