"""Runs of compress that take days: ended and gone on with, shared by machines, over files that change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunesid_cli.inputs.sharding import Partition, parse_partition
from prunesid_cli.tokencache import open_cache
from prunesid_cli.tokencache.format import MEASUREMENT_LOG
from tests.caches import held
from tests.conftest import Run

LONG_AGO = 1_600_000_000


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path) -> Path:
    """Ten scenes that were written long ago."""
    shutil.copytree(pictures[0].parent, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return tmp_path / "in"


def overwrite(path: Path, other: Path, changed: int) -> None:
    """With another picture, in as many bytes; a PNG may be followed by anything."""
    size = max(path.stat().st_size, other.stat().st_size)
    assert path.stat().st_size == size, "nothing to compare: the first one must be the larger"
    path.write_bytes(other.read_bytes().ljust(size, b"\0"))
    os.utime(path, (changed, changed))


@pytest.fixture
def two(folder: Path) -> tuple[Path, Path]:
    """The largest picture, and another."""
    ordered = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    return ordered[-1], ordered[0]


def test_what_looks_the_same_is_not_read_again(run: Run, llava: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    """So a change that leaves size and time as they were is seen by --checksum alone."""
    path, other = two
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    before = held(tmp_path / "c")[str(path)].digest
    overwrite(path, other, LONG_AGO)
    assert "nothing to do: 1 already in the cache" in run(*command).err
    assert "compressed 1 image" in run(*command, "--checksum").err
    assert held(tmp_path / "c")[str(path)].digest != before


def test_what_was_changed_later_is_done_again(run: Run, llava: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    path, other = two
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    overwrite(path, other, LONG_AGO + 1)
    assert "compressed 1 image, 1 of them changed since, in" in run(*command).err


def test_folders_that_replace_each_other_are_told_of(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, some in (("a", pictures[:3]), ("b", pictures[3:7])):
        (tmp_path / folder / "in").mkdir(parents=True)
        for number, picture in enumerate(some):
            shutil.copy(picture, tmp_path / folder / "in" / f"{number}.png")
    monkeypatch.chdir(tmp_path / "a")
    command = ("compress", "in", "--out", tmp_path / "c", "-m", llava, "--shard-items", "2")
    assert "compressed 3 images in" in run(*command).err
    monkeypatch.chdir(tmp_path / "b")
    assert "compressed 4 images, 3 of them changed since, in" in run(*command).err
    assert "nothing to do: 4 already in the cache" in run(*command).err


def test_what_was_changed_a_moment_ago_is_read_again(
    run: Run, llava: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    """It may have been changed twice within the grain of the clock."""
    path, other = two
    now = int(time.time()) + 1
    os.utime(path, (now, now))
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    overwrite(path, other, now)
    assert "compressed 1 image" in run(*command).err


def test_what_was_only_touched_is_read_once(run: Run, llava: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    path, other = two
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    os.utime(path, (LONG_AGO + 9, LONG_AGO + 9))
    assert "nothing to do" in run(*command).err
    overwrite(path, other, LONG_AGO + 9)
    assert "nothing to do" in run(*command).err, "its new time was not kept"


def test_with_nothing_to_do_no_weights_are_read(
    run: Run, llava: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compress", folder, "--out", tmp_path / "c", "-m", llava)
    run(*command)

    def fail(session: object) -> None:
        raise ZeroDivisionError("weights")

    monkeypatch.setattr("prunesid_cli.pipeline.session.Session.vision", fail)
    for more in ((), ("--checksum",)):
        ran = run(*command, *more)
        assert (ran.code, "nothing to do: 10 already in the cache" in ran.err) == (0, True), ran.err
    shutil.copy(folder / "scene0.png", folder / "new.png")
    ran = run(*command)
    assert (ran.code, "ZeroDivisionError" in ran.err) == (1, True), "what fails for all is no fault of one input"
    assert not open_cache(tmp_path / "c").failures()


def test_machines_share_a_folder(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    bad = [folder / f"bad{number}.png" for number in range(40)]  # so many that each machine has some
    for path in bad:
        path.write_bytes(b"no picture")
    parts, failed = list[str](), list[str]()
    for number in (1, 2, 3):
        out = tmp_path / f"c{number}"
        ran = run("compress", folder, "--out", out, "-m", llava, "--shard", f"{number}/3")
        assert f"shard {number}/3" in ran.err
        parts += held(out)
        failed += [record["source"] for record in open_cache(out).failures()]
    assert sorted(parts) == sorted(str(path) for path in folder.glob("scene*.png"))
    assert sorted(failed) == sorted(map(str, bad))


def test_a_portion_may_be_empty(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    """All of them are merged into the bytes of one run."""
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()
    parts = [tmp_path / f"{number}" for number in range(1, 9)]
    for number, out in enumerate(parts, 1):
        ran = run("compress", folder, "--out", out, "-m", llava, "--shard", f"{number}/8")
        assert (ran.code, "warning" in ran.err) == (0, False)
        assert run("cache", "ls", out).code == run("cache", "info", out).code == run("cache", "verify", out).code == 0
    empty = [out for out in parts if not held(out)]
    assert len(empty) >= 6
    assert f"{empty[0]} is empty" in run("cache", "ls", empty[0]).err
    assert run("cache", "info", empty[0], "--json").records[0]["items"] == 0
    ran = run("cache", "merge", *parts, "--out", tmp_path / "all")
    assert (ran.code, "merged 2 items of 8 caches" in ran.err) == (0, True)
    run("compress", folder, "--out", tmp_path / "whole", "-m", llava)
    for path in (tmp_path / "whole").glob("prunesid-*"):
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


def test_shards_that_lack_or_are_given_twice_are_told_of(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}" for number in range(1, 4)]
    command = ("compress", folder, "-m", llava, "--out")
    for number, out in enumerate(parts, 1):
        assert run(*command, out, "--shard", f"{number}/3").code == 0
    some = run("cache", "merge", parts[0], parts[0], parts[2], "--out", tmp_path / "some").err
    assert "warning: not among these caches: shard 2/3\n" in some
    assert "warning: more than once among these caches: shard 1/3\n" in some
    assert "warning" not in run("cache", "merge", *parts, "--out", tmp_path / "all").err
    before = files(parts[0])
    for other in ("2/3", "1/4"):
        ran = run(*command, parts[0], "--shard", other)
        assert (ran.code, f"{parts[0]} holds shard 1/3, not {other}" in ran.err) == (2, True)
    assert files(parts[0]) == before
    assert run(*command, parts[0], "--shard", "1/3").code == 0
    assert run(*command, parts[0]).code == 0, "it has all now"
    assert "warning" not in run("cache", "merge", parts[0], "--out", tmp_path / "one").err
    run(*command, tmp_path / "whole")
    for name in ("some", "all", "one"):
        assert (held(tmp_path / name).keys() == held(tmp_path / "whole").keys()) == (name != "some")
    assert files(tmp_path / "all") == files(tmp_path / "whole")


OURS = [3, 4, 7, 9]


def test_a_portion_stays_when_files_are_added() -> None:
    names = [f"photos/{i}.jpg" for i in range(1000)]
    for number in (1, 2, 3, 4):
        assert 200 < sum(Partition(number, 4).takes(name) for name in names) < 300
    ours = [i for i, name in enumerate(names[:12]) if Partition(1, 4).takes(name)]
    assert ours == OURS, "machines with different versions would share otherwise"


SLURM = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "8"}


def test_a_portion_by_the_environment_is_asked_for(
    run: Run, llava: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = SLURM | {"SLURM_ARRAY_TASK_COUNT": "4"}
    assert parse_partition(None, slurm) == Partition()
    assert (parse_partition("auto", slurm).number, parse_partition("auto", slurm).count) == (3, 4)
    kubernetes = {"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "5"}
    assert (parse_partition("auto", kubernetes).number, parse_partition("auto", kubernetes).count) == (1, 5)
    command = ("compress", folder, "--out", tmp_path / "c", "-m", llava, "--shard")
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert "shard 3/4, by SLURM_ARRAY_TASK_ID 6" in run(*command, "auto").err
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    uneven = run(*command, "auto")
    assert (uneven.code, "not evenly numbered" in uneven.err) == (2, True)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    for text in ("auto", "0/3", "4/3", "1", "1/0", "a/b"):
        ran = run(*command, text)
        assert (ran.code, "hint: of four machines: --shard 1/4" in ran.err) == (2, True), text


def test_retry_failed(run: Run, llava: Path, folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    out, later = tmp_path / "c", tmp_path / "later"
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "gone.png").write_bytes(b"no picture")
    retry = ("compress", "--retry-failed", "--out", out, "-m", llava)
    assert run("compress", folder, later, tmp_path / "*.tif", "--out", out, "-m", llava).code == 3
    assert "failed, listed by" in run(*retry).err
    (folder / "new.png").write_bytes(pictures[1].read_bytes())
    shutil.copy(pictures[0], folder / "bad.png")
    (folder / "gone.png").unlink()
    later.mkdir()
    shutil.copy(pictures[2], later)
    ran = run(*retry)
    assert (ran.code, "compressed 2 images" in ran.err) == (3, True), ran.err
    assert str(folder / "new.png") not in held(out)
    left = {record["source"]: record["error"] for record in open_cache(out).failures()}
    assert set(left) == {str(folder / "gone.png"), str(tmp_path / "*.tif")}
    assert "no such file" in left[str(folder / "gone.png")]
    for name in ("gone.png", "x.tif"):
        shutil.copy(pictures[3], (folder if name == "gone.png" else tmp_path) / name)
    assert run(*retry).code == 0
    ran = run(*retry)
    assert (ran.code, "nothing to do: nothing failed before" in ran.err) == (0, True)


def test_what_to_type_to_go_on_with_a_cache(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    (folder / "bad.png").write_bytes(b"no picture")
    made = ("-m", llava, "-k", "12", "--method", "random", "--dynamic")
    assert run("compress", folder, "--out", out, *made).code == 3
    ran = run("compress", "--retry-failed", "--out", out, "-k", "13", "--fixed")
    hint = f"go on with --model {llava} --method random --keep 12 --dynamic, as it was made, or name another --out"
    assert (ran.code, hint in " ".join(ran.err.split())) == (1, True), ran.err
    typed = ("--model", llava, "--method", "random", "--keep", "12", "--dynamic")
    ran = run("compress", "--retry-failed", "--out", out, *typed)
    assert (ran.code, "bad.png" in ran.err) == (3, True), ran.err
    ran = run("compress", "--retry-failed", "--out", out, *typed, "--store", "int8")
    assert "hint: go on with --store model, as" in ran.err, ran.err


def test_retry_failed_takes_no_paths(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    for args, code, words in (
        ((folder, "--retry-failed"), 2, "--retry-failed and PATH contradict"),
        (("--retry-failed", "--shard", "1/2"), 2, "--retry-failed and --shard contradict"),
        (("--retry-failed",), 1, "no such cache"),
        ((), 2, "compress needs images or clips"),
    ):
        ran = run("compress", *args, "--out", tmp_path / "c", "-m", llava)
        assert (ran.code, words in ran.err, "hint: " in ran.err) == (code, True, True), ran.err
    assert not (tmp_path / "c").exists()


def _hear_interrupts() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(*args: object, stdin: int | None = None) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "prunesid_cli", *map(str, args), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": stdin or subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=_hear_interrupts) as process:
        try:
            yield process
        finally:
            process.kill()


def files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.suffix == ".safetensors"}


def read_lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout
    return [json.loads(process.stdout.readline())["source"] for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_then_resumed_is_one_run(
    run: Run, llava: Path, folder: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    for path in sorted(folder.iterdir()):
        for number in range(6):
            shutil.copy2(path, folder / f"{path.stem}-{number}.png")
    args = ("compress", folder, "-m", llava, "--batch-size", "1", "--shard-items", "4", "--out")
    assert run(*args, tmp_path / "whole").code == 0
    out = tmp_path / "part"
    with running(*args, out) as process:
        read_lines(process, 9)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    if sent == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert (process.returncode, f"go on with: prunesid compress {folder} " in err) == (130, True), err
    safe = len(open_cache(out))
    assert 4 <= safe < 70
    resumed = run(*args, out)
    assert (resumed.code, f"{safe} already in the cache" in resumed.err) == (0, True), resumed.err
    assert files(out) == files(tmp_path / "whole")
    assert not list(out.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_measuring_then_resumed_is_one_run(
    run: Run, llava: Path, folder: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    """What was measured is not measured again, but for what was changed since, or is damaged."""
    for path in sorted(folder.iterdir()):
        for number in range(3):
            shutil.copy2(path, folder / f"{path.stem}-{number}.png")
    args = ("compress", folder, "-m", llava, "-k", "64", "--dynamic", "--batch-size", "1", "--out")
    assert run(*args, tmp_path / "whole").code == 0
    out, log = tmp_path / "part", tmp_path / "part" / MEASUREMENT_LOG
    with running(*args, out) as process:
        while not log.exists() or log.stat().st_size < 32 * 6:
            time.sleep(0.002)
            assert process.poll() is None
        process.send_signal(sent)
        process.communicate(timeout=60)
    known = log.stat().st_size // 32 - 1
    assert (5 <= known < 40, files(out)) == (True, {})
    data = bytearray(log.read_bytes())
    data[32 * 3 + 20] ^= 1
    log.write_bytes(data + b"torn")
    os.utime(min(folder.iterdir()), (LONG_AGO, LONG_AGO + 1))
    shutil.copytree(out, tmp_path / "other")
    resumed = run(*args, out)
    assert (resumed.code, f"information of {known - 2} images is known" in resumed.err) == (0, True), resumed.err
    assert files(out) == files(tmp_path / "whole")
    assert not log.exists()
    assert "is known" not in run(*args, tmp_path / "other", "--draft").err
    assert not (tmp_path / "other" / MEASUREMENT_LOG).exists()


@pytest.mark.slow
def test_a_list_that_pauses_keeps_nothing_waiting_and_can_be_stopped(llava: Path, folder: Path, tmp_path: Path) -> None:
    names = sorted(map(str, folder.iterdir()))[:3]
    reading, writing = os.pipe()
    with running("compress", "-", "--out", tmp_path / "c", "-m", llava, stdin=reading) as process:
        os.close(reading)
        os.write(writing, "".join(f"{name}\n" for name in names).encode())
        assert read_lines(process, 3) == names
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1].count("interrupted") == 1
        assert process.returncode == 130
    os.close(writing)
    assert sorted(held(tmp_path / "c")) == names


STUCK = """
import time
from prunesid_cli.runtime.shutdown import graceful_shutdown
with graceful_shutdown() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(.01)
    print("asked", flush=True)
    time.sleep(60)
"""


def test_a_second_signal_ends_at_once() -> None:
    """Whatever the first one waits for."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STUCK], **pipes, preexec_fn=_hear_interrupts) as process:
        assert process.stdout
        for sent in (signal.SIGINT, signal.SIGTERM):
            process.stdout.readline()
            process.send_signal(sent)
        began = time.monotonic()
        assert process.wait(timeout=50) == 130
        assert time.monotonic() - began < 30
