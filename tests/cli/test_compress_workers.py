"""compress with worker processes: the same bytes for any number of them, and bad inputs fail alone."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from prunesid_cli import load
from prunesid_cli.inputs.listing import Listing
from prunesid_cli.pipeline.batches import BatchRunner
from prunesid_cli.pipeline.compress import compress, open_writer, write_results
from prunesid_cli.pipeline.load import Decode, DecodeRequest, InputLoader, decode_in_worker, make_decoder
from prunesid_cli.pipeline.results import FailedInput
from prunesid_cli.pipeline.settings import TokenStore
from prunesid_cli.pipeline.token_budgets import allocate_on_arrival
from prunesid_cli.pipeline.workers import WorkerSetup
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.runtime.worker_pool import WorkerPool, is_supported
from prunesid_cli.runtime.worker_server import end_after
from prunesid_cli.tokencache import open_cache
from tests.cli.helpers import cache_files
from tests.cli.processes import prunesid, read_sources, running
from tests.conftest import Run
from tests.films import film
from tests.models.tiny import write_checkpoint

pytestmark = pytest.mark.skipif(not is_supported(), reason="no fork here")


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path) -> Path:
    """Pictures of several formats, a damaged one, a clip, a text file and an empty one."""
    folder = tmp_path / "in"
    shutil.copytree(pictures[0].parent, folder)
    with Image.open(pictures[1]) as image:
        image.save(folder / "a.jpg")
        image.convert("L").save(folder / "b.gif")
        image.convert("P").save(folder / "c.png", transparency=0)
    data = (folder / "a.jpg").read_bytes()
    (folder / "damaged.jpg").write_bytes(data[: len(data) * 2 // 3] + bytes(99) + data[len(data) * 2 // 3 + 99 :])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    film(folder / "film.mp4", 12)
    for path in folder.iterdir():
        os.utime(path, (10**9, 10**9))
    return folder


@pytest.mark.parametrize(
    ("numbers", "options"), [((0, 2), ()), pytest.param((0, 1, 2, 5), ("--dynamic",), marks=pytest.mark.slow)]
)
def test_any_number_of_workers_writes_the_same_bytes(
    run: Run, folder: Path, tmp_path: Path, numbers: tuple[int, ...], options: tuple[str, ...]
) -> None:
    model = write_checkpoint("video_llava", tmp_path / "model")
    results = {}
    for workers in numbers:
        command = ("compress", folder, "-m", model, "--frames", "4", "--batch-size", "3", *options)
        results[workers] = run(*command, "--out", tmp_path / str(workers), "--workers", workers, "--json")
    assert {result.code for result in results.values()} == {3}
    assert len({result.out for result in results.values()}) == 1
    files = [cache_files(tmp_path / str(workers)) for workers in results]
    assert files[0] and all(found == files[0] for found in files)
    failures = {Path(one["source"]).name for one in open_cache(tmp_path / "2").failures()}
    assert failures == {"text.jpg", "empty.png"}


def make_hostile_decoder(setup: WorkerSetup) -> Decode:
    """Decodes as any worker does, but some names crash or hang it."""
    decode = make_decoder(setup)
    hostile: dict[str, Callable[[], object]] = {
        "scene3": os.abort,
        "scene5": lambda: time.sleep(60),
        "scene7": lambda: os.kill(os.getpid(), signal.SIGKILL),
    }

    def work(request: DecodeRequest) -> object:
        end_after(1.0)
        hostile.get(Path(request.source).stem, lambda: None)()
        return decode(request)

    return work  # type: ignore[return-value]


def test_pictures_that_crash_or_hang_their_decoder_fail_alone(
    llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = load(str(llava), device="cpu")
    setup = WorkerSetup(model.session.checkpoint, model.settings)
    with (
        closing(WorkerPool(f"{__name__}:make_hostile_decoder", setup)) as pool,
        closing(open_writer(model.session, model.pruner, tmp_path / "c", TokenStore.model, "test")) as writer,
    ):
        loader = InputLoader(partial(decode_in_worker, pool, model.pruner.decoding), writer)
        runner = BatchRunner(model.pruner, loader, BatchSizeTuner.fixed(4), num_loading=3)
        allocator = allocate_on_arrival(model.pruner, ())
        listing = Listing(map(str, pictures))
        results = list(compress(runner, listing, allocator, lambda batch: write_results(writer, batch)))
    failed = {Path(one.source).stem: one.error.problem for one in results if isinstance(one, FailedInput)}
    assert failed == {
        "scene3": f"{pictures[3]}: the decoder crashed (SIGABRT)",
        "scene5": f"{pictures[5]}: not decoded within 60 s",
        "scene7": f"{pictures[7]}: the process that decoded it was killed, perhaps for lack of memory",
    }
    assert [one.source for one in results] == list(map(str, pictures))
    cache = open_cache(tmp_path / "c")
    assert len(cache) == 7
    assert {one["source"] for one in cache.failures()} == {str(pictures[number]) for number in (3, 5, 7)}


@pytest.mark.slow
def test_too_few_open_files_are_told(llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (18, 18))
    command = ("compress", *pictures, "-m", llava, "--out", tmp_path / "c", "--workers", "16")
    done = prunesid(*command, preexec_fn=limit)
    assert (done.returncode, "hint: allow more with: ulimit -n 1024" in done.stderr) == (1, True), done.stderr


def test_a_model_that_cannot_be_read_is_not_the_fault_of_an_input(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """Whichever process finds out first."""
    model = tmp_path / "model"
    shutil.copytree(llava, model)
    (model / "tokenizer.json").write_text("{")
    for workers in (0, 2):
        result = run("compress", pictures[0], "-m", model, "--out", tmp_path / "c", "--workers", workers)
        assert (result.code, "error: cannot load the processor of" in result.err) == (1, True), result.err
        assert str(pictures[0]) not in result.err


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    "sent", [*(pytest.param(sent, marks=pytest.mark.slow) for sent in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL]
)
def test_a_run_that_is_ended_leaves_no_process(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, sent: signal.Signals
) -> None:
    command = ("compress", "-", "-m", llava, "--out", tmp_path / "c", "--batch-size", "1", "--workers", "2")
    reading, writing = os.pipe()
    with running(*command, stdin=reading) as process:
        os.close(reading)
        os.write(writing, "".join(f"{path}\n" for path in pictures).encode())
        assert read_sources(process, 4) == list(map(str, pictures[:4]))
        servers = children(process.pid)
        workers = [worker for server in servers for worker in children(server)]
        assert 1 <= len(workers) <= 2
        process.send_signal(sent)
        process.communicate(timeout=60)
    os.close(writing)
    assert process.returncode == (-9 if sent == signal.SIGKILL else 130)
    deadline = time.monotonic() + 10
    alive = [*servers, *workers]
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if Path(f"/proc/{pid}/stat").exists() and " Z " not in read_stat(pid)]
        time.sleep(0.02)
    assert not alive


def read_stat(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return " Z "
