"""Worker processes: results and errors, crashes, hangs, and that nothing is left of them."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesid_cli.errors import MediaError, UnexpectedError
from prunesid_cli.runtime import worker_pool
from prunesid_cli.runtime.shared_buffer import ALIGNMENT_BYTES, Region, SharedBuffer, needed_bytes
from prunesid_cli.runtime.worker_pool import WorkerEnded, WorkerPool, describe_exit
from prunesid_cli.runtime.worker_server import end_after

pytestmark = pytest.mark.skipif(not worker_pool.is_supported(), reason="no fork here")
LIMIT = 0.3


def make_work(offset: int) -> Callable[[Any], Any]:
    """The work of the tests; it is prepared once, in the server."""
    server = os.getpid()

    def work(argument: Any) -> Any:
        if isinstance(argument, int):
            return {"numbers": np.full(argument, argument + offset), "pid": os.getpid(), "server": server}
        return CALLS[argument]()

    return work


def hang(sleep: Callable[[int], object]) -> None:
    end_after(LIMIT)
    sleep(60)


def refuse() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise MediaError("bad.jpg: damaged", "copy it again") from error


def fail() -> None:
    raise ZeroDivisionError("a bug")


def count_page_faults() -> int:
    """Page faults of 39 MB in three arrays, which are free again at the end."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [np.ones(13_000_000, np.uint8) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


CALLS: dict[str, Callable[[], Any]] = {
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: hang(time.sleep),
    "hang in C": lambda: hang(ctypes.PyDLL(None).sleep),
    "refuse": refuse,
    "fail": fail,
    "allocate": count_page_faults,
}


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(f"{__name__}:make_work", 5)
    yield pool
    pool.close()


def test_arrays_come_back_from_workers_that_one_server_made(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(pool.call, range(1, 60)))
    for number, result in enumerate(results, 1):
        assert (result["numbers"] == number + 5).all() and len(result["numbers"]) == number
    assert {result["server"] for result in results} == {pool.pid}
    assert 1 <= len({result["pid"] for result in results}) <= 3


def test_arrays_that_do_not_fit_into_the_shared_memory_come_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "BUFFER_BYTES", 1 << 16)
    monkeypatch.setattr(worker_pool, "FIRST_REGION_BYTES", 64)
    pool = WorkerPool(f"{__name__}:make_work", 0)
    results = [pool.call(number) for number in (10, 100, 1000, 100_000, 1000, 1000, 8000, 8000, 3)]
    assert [int(result["numbers"].sum()) for result in results] == [
        number * number for number in (10, 100, 1000, 100_000, 1000, 1000, 8000, 8000, 3)
    ]
    results[3]["numbers"][0] = 1  # an array is one's own
    pool.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
def test_a_worker_keeps_its_memory(pool: WorkerPool) -> None:
    faults = [pool.call("allocate") for _ in range(3)]
    assert faults[0] > 500 and faults[2] < 100


@pytest.mark.parametrize(("kind", "reason"), [
    ("abort", "SIGABRT"), ("kill", "SIGKILL"), ("exit", "exit code 3"), ("hang", "SIGALRM"), ("hang in C", "SIGALRM"),
])  # fmt: skip
def test_what_ends_a_worker_costs_one_call(pool: WorkerPool, kind: str, reason: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        bad = threads.submit(pool.call, kind)
        assert [int(pool.call(number)["numbers"].sum()) for number in (1, 2)] == [6, 14]
        with pytest.raises(WorkerEnded) as caught:
            bad.result(30)
    assert describe_exit(caught.value.exit_code) == reason
    assert int(pool.call(1)["numbers"].sum()) == 6


def test_errors_keep_their_cause(pool: WorkerPool) -> None:
    with pytest.raises(MediaError) as refused:
        pool.call("refuse")
    assert (refused.value.problem, refused.value.hint) == ("bad.jpg: damaged", "copy it again")
    assert "KeyError: 'inner'" in str(refused.value.__cause__)
    with pytest.raises(UnexpectedError, match="ZeroDivisionError: a bug") as failed:
        pool.call("fail")
    assert "in fail" in str(failed.value.__cause__)


def raise_in_server(setup: Any) -> None:
    raise MediaError("cannot be prepared")


def end_server(setup: Any) -> None:
    os._exit(9)


def test_every_call_tells_why_the_server_could_not_be_prepared() -> None:
    for make, error, problem in (
        (raise_in_server, MediaError, "cannot be prepared"),
        (end_server, UnexpectedError, "exit code 9"),
    ):
        pool = WorkerPool(f"{__name__}:{make.__name__}")
        for _ in range(2):
            with pytest.raises(error, match=problem):
                pool.call(1)
        pool.close()


def processes_of_session(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def check_all_end(leader: int) -> None:
    """The system needs a moment to end processes that were killed."""
    deadline = time.monotonic() + 10
    while processes_of_session(leader) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_of_session(leader) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_nothing_is_left_after_the_end_or_a_kill() -> None:
    """Not even a worker that hangs."""
    pool = WorkerPool(f"{__name__}:make_work", 5)
    threads = ThreadPoolExecutor(2)
    bad = threads.submit(pool.call, "hang in C")
    pool.call(1)
    assert len(processes_of_session(pool.pid)) >= 2
    pool.close()
    check_all_end(pool.pid)
    with pytest.raises((WorkerEnded, UnexpectedError)):
        bad.result(10)
    code = (
        "import threading, time\n"
        "from prunesid_cli.runtime.worker_pool import WorkerPool\n"
        f"pool = WorkerPool('{__name__}:make_work', 5)\n"
        "pool.call(1)\n"
        "threading.Thread(target=pool.call, args=('hang in C',), daemon=True).start()\n"
        "time.sleep(.1)\n"
        "print(pool.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        leader = int(process.stdout.readline())
        assert len(processes_of_session(leader)) >= 2
        process.kill()
    check_all_end(leader)


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 9)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_regions_of_a_buffer_never_overlap_and_are_used_again(steps: list[tuple[int, int]]) -> None:
    buffer, alive = SharedBuffer(1 << 14), dict[int, Region]()
    for number, (size, place) in enumerate(steps):
        region = buffer.allocate(size)
        if region is None:
            assert sum(one.size for one in alive.values()) + size > (1 << 14) // 16, "there was room"
        else:
            assert region.size >= size and region.start % ALIGNMENT_BYTES == 0
            alive[number] = region
        spans = sorted((one.start, one.start + one.size) for one in alive.values())
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
        if alive and place > 3:
            buffer.release(alive.pop(sorted(alive)[place % len(alive)]))
    for region in alive.values():
        buffer.release(region)
    assert buffer.allocate(1 << 14) == Region(0, 1 << 14)


def test_a_region_is_free_once_its_last_array_is_gone() -> None:
    buffer = SharedBuffer(1 << 12)
    region = buffer.allocate(1 << 12)
    assert region
    assert buffer.write(region, [memoryview(b"abc"), memoryview(bytes(range(100)))])
    first, second = buffer.view(region, [3, 100])
    assert (first.tobytes(), second.tolist()) == (b"abc", list(range(100)))
    rest = buffer.allocate((1 << 12) - needed_bytes([3, 100]))
    assert rest and buffer.allocate(1) is None
    part = second[10:20]
    del first, second
    gc.collect()
    assert buffer.allocate(1) is None
    assert part.tolist() == list(range(10, 20))
    del part
    gc.collect()
    assert buffer.allocate(needed_bytes([3, 100])) == Region(0, needed_bytes([3, 100]))
    assert not buffer.write(rest, [memoryview(bytes(1 << 12))])


def prepare_slowly(setup: Any) -> None:
    time.sleep(60)


def test_a_pool_ends_at_once_while_it_is_prepared() -> None:
    """Although a call waits for it."""
    pool = WorkerPool(f"{__name__}:prepare_slowly")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.call, 1)
        time.sleep(0.3)
        start = time.monotonic()
        pool.close()
        with pytest.raises(UnexpectedError):
            waiting.result(10)
    assert time.monotonic() - start < 10
