"""Runs of compress that are repeated, interrupted and resumed, over files that change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunesid_cli.tokencache import CacheWriter, open_cache
from prunesid_cli.tokencache.format import MEASUREMENT_LOG
from tests.caches import RUN, items_by_source, make_wide_entry, write_cache
from tests.cli.conftest import LONG_AGO
from tests.cli.helpers import cache_files
from tests.cli.processes import heed_interrupts, read_sources, running
from tests.conftest import PROMPT, Run


def test_a_changed_picture_replaces_its_item(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    shutil.copy(pictures[0], path)
    run("compress", path, "--out", tmp_path / "c", "-m", llava)
    shutil.copy(pictures[1], path)
    run("compress", path, "--out", tmp_path / "c", "-m", llava)
    assert (
        run("answer", tmp_path / "c", PROMPT).records[0]["answer"] == run("ask", "-m", llava, path, PROMPT).out.strip()
    )
    assert len(run("answer", tmp_path / "c", PROMPT).records) == 1


def overwrite(path: Path, other: Path, changed: int) -> None:
    """Write another picture into `path` without a change of its size: bytes after the end of a PNG are ignored."""
    size = max(path.stat().st_size, other.stat().st_size)
    assert path.stat().st_size == size, "`path` must be the larger file"
    path.write_bytes(other.read_bytes().ljust(size, b"\0"))
    os.utime(path, (changed, changed))


@pytest.fixture
def two_files(folder: Path) -> tuple[Path, Path]:
    """The largest picture, and the smallest."""
    ordered = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    return ordered[-1], ordered[0]


def test_a_file_of_the_same_size_and_time_is_not_read_again(
    run: Run, llava: Path, two_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """A change that leaves both as they were is seen with --checksum only."""
    path, other = two_files
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    before = items_by_source(tmp_path / "c")[str(path)].digest
    overwrite(path, other, LONG_AGO)
    assert "nothing to do: 1 already in the cache" in run(*command).err
    assert "compressed 1 image" in run(*command, "--checksum").err
    assert items_by_source(tmp_path / "c")[str(path)].digest != before


def test_a_file_with_a_later_time_is_compressed_again(
    run: Run, llava: Path, two_files: tuple[Path, Path], tmp_path: Path
) -> None:
    path, other = two_files
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    overwrite(path, other, LONG_AGO + 1)
    assert "compressed 1 image, 1 of them changed since, in" in run(*command).err


def test_changed_files_are_counted_in_the_summary(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, paths in (("a", pictures[:3]), ("b", pictures[3:7])):
        (tmp_path / folder / "in").mkdir(parents=True)
        for number, picture in enumerate(paths):
            shutil.copy(picture, tmp_path / folder / "in" / f"{number}.png")
    monkeypatch.chdir(tmp_path / "a")
    command = ("compress", "in", "--out", tmp_path / "c", "-m", llava, "--shard-items", "2")
    assert "compressed 3 images in" in run(*command).err
    monkeypatch.chdir(tmp_path / "b")
    assert "compressed 4 images, 3 of them changed since, in" in run(*command).err
    assert "nothing to do: 4 already in the cache" in run(*command).err


def test_a_file_changed_a_moment_ago_is_read_again(
    run: Run, llava: Path, two_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """It may have changed twice within the resolution of the file system's clock."""
    path, other = two_files
    now = int(time.time()) + 1
    os.utime(path, (now, now))
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    overwrite(path, other, now)
    assert "compressed 1 image" in run(*command).err


def test_a_touched_file_is_read_once(run: Run, llava: Path, two_files: tuple[Path, Path], tmp_path: Path) -> None:
    path, other = two_files
    command = ("compress", path, "--out", tmp_path / "c", "-m", llava)
    run(*command)
    os.utime(path, (LONG_AGO + 9, LONG_AGO + 9))
    assert "nothing to do" in run(*command).err
    overwrite(path, other, LONG_AGO + 9)
    assert "nothing to do" in run(*command).err, "the new time was not stored"


def test_with_nothing_to_do_no_weights_are_read(
    run: Run, llava: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compress", folder, "--out", tmp_path / "c", "-m", llava)
    run(*command)

    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError("weights")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", fail)
    for more in ((), ("--checksum",)):
        result = run(*command, *more)
        assert (result.code, "nothing to do: 10 already in the cache" in result.err) == (0, True), result.err
    shutil.copy(folder / "scene0.png", folder / "new.png")
    result = run(*command)
    assert (result.code, "ZeroDivisionError" in result.err) == (1, True), (
        "a fault of the model is not a failure of one input"
    )
    assert not open_cache(tmp_path / "c").failures()


def test_a_lost_shard_is_reported_and_restored_by_the_same_command(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "c"
    command = ("compress", *pictures[:4], "--out", out, "-m", llava, "--shard-items", 2)
    run(*command)
    complete = run("answer", out, PROMPT)
    (out / "prunesid-00001.safetensors").unlink()
    result = run("answer", out, PROMPT)
    assert (result.code, len(result.records)) == (3, 2)
    assert "prunesid-00001.safetensors is missing, and with it 2 items\nhint: run the same compress" in result.err
    other = run("compress", pictures[5], "--out", out, "-m", llava)
    assert "is missing 1 of the 2 items of its lost shards: they are not among these inputs" in other.err
    (out / "prunesid-00002.safetensors").unlink()
    again = run(*command)
    assert again.code == 0
    assert "prunesid-00002.safetensors is missing, and with it 1 item; what is among these inputs" in again.err
    assert "of its lost shards" not in again.err
    answered = run("answer", out, PROMPT)
    assert answered.code == 0
    assert [r["answer"] for r in answered.records] == [r["answer"] for r in complete.records]
    for path in out.glob("prunesid-0*.safetensors"):
        path.unlink()
    result = run("answer", out, PROMPT)
    assert (result.code, "are missing, and with them 4 items" in result.err) == (1, True)


def test_retry_failed(run: Run, llava: Path, folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    out, later = tmp_path / "c", tmp_path / "later"
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "gone.png").write_bytes(b"no picture")
    paths = (folder, later, tmp_path / "*.tif")
    retry = ("compress", *paths, "--retry-failed", "--out", out, "-m", llava)
    assert run("compress", *paths, "--out", out, "-m", llava).code == 3
    assert "failed, listed by" in run(*retry).err
    (folder / "new.png").write_bytes(pictures[1].read_bytes())
    shutil.copy(pictures[0], folder / "bad.png")
    (folder / "gone.png").unlink()
    later.mkdir()
    shutil.copy(pictures[2], later)
    result = run(*retry)
    assert (result.code, "added 2 inputs with the contents of others" in result.err) == (3, True), result.err
    assert str(folder / "new.png") not in items_by_source(out)
    errors = {record["source"]: record["error"] for record in open_cache(out).failures()}
    assert set(errors) == {str(folder / "gone.png"), str(tmp_path / "*.tif")}
    assert "no such file" in errors[str(folder / "gone.png")]
    for name in ("gone.png", "x.tif"):
        shutil.copy(pictures[3], (folder if name == "gone.png" else tmp_path) / name)
    assert run(*retry).code == 0
    result = run(*retry)
    assert (result.code, "nothing to do: no failed inputs are listed" in result.err) == (0, True)


def test_retry_failed_retries_what_is_named_only(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    """A list of failures, which may come from a stranger, never chooses what is read."""
    out, private = tmp_path / "c", tmp_path / "private.png"
    run("compress", folder, "--out", out, "-m", llava)
    shutil.copy(next(folder.glob("*.png")), private)
    (folder / "link").symlink_to(tmp_path)
    sources = [f"{folder}/../private.png", f"{folder}/link/private.png", str(private), "\0", str(folder / "new.png")]
    shutil.copy(private, folder / "new.png")
    records = [json.dumps({"source": source, "error": "", "hint": ""}) + "\n" for source in sources]
    (out / "failures.jsonl").write_text("".join(records))
    before = set(items_by_source(out))
    result = run("compress", tmp_path / "elsewhere", "--retry-failed", "--out", out, "-m", llava)
    assert "none of 5 failed inputs is among these paths" in result.err
    assert run("compress", folder, "--retry-failed", "--out", out, "-m", llava).code == 0
    assert set(items_by_source(out)) - before == {str(folder / "new.png")}
    assert {record["source"] for record in open_cache(out).failures()} == set(sources[:4])


def test_wrong_uses_of_retry_failed(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    for args, code, words in (
        ((folder, "--retry-failed", "--calibrate"), 2, "--retry-failed and --calibrate contradict"),
        ((folder, "--retry-failed", "--shard", "1/2"), 2, "--retry-failed and --shard contradict"),
        ((folder, "--retry-failed"), 1, "no such cache"),
        (("--retry-failed",), 2, "--retry-failed needs the paths"),
        ((), 2, "compress needs images or clips"),
    ):
        result = run("compress", *args, "--out", tmp_path / "c", "-m", llava)
        assert (result.code, words in result.err, "hint: " in result.err) == (code, True, True), result.err
    assert not (tmp_path / "c").exists()


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
        read_sources(process, 9)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    if sent == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert (process.returncode, f"continue with: prunesid compress {folder} " in err) == (130, True), err
    safe = len(open_cache(out))
    assert 4 <= safe < 70
    resumed = run(*args, out)
    assert (resumed.code, f"{safe} already in the cache" in resumed.err) == (0, True), resumed.err
    assert cache_files(out) == cache_files(tmp_path / "whole")
    assert not list(out.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_measuring_then_resumed_is_one_run(
    run: Run, llava: Path, folder: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    """Measurements are reused, except those of files that changed and those with a damaged record."""
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
    assert (5 <= known < 40, cache_files(out)) == (True, {})
    data = bytearray(log.read_bytes())
    data[32 * 3 + 20] ^= 1
    log.write_bytes(data + b"torn")
    os.utime(min(folder.iterdir()), (LONG_AGO, LONG_AGO + 1))
    shutil.copytree(out, tmp_path / "other")
    resumed = run(*args, out)
    assert (resumed.code, f"information of {known - 2} images is known" in resumed.err) == (0, True), resumed.err
    assert cache_files(out) == cache_files(tmp_path / "whole")
    assert not log.exists()
    assert "is known" not in run(*args, tmp_path / "other", "--draft").err
    assert not (tmp_path / "other" / MEASUREMENT_LOG).exists()


@pytest.mark.slow
def test_a_list_on_stdin_that_pauses_does_not_delay_items_or_a_stop(llava: Path, folder: Path, tmp_path: Path) -> None:
    names = sorted(map(str, folder.iterdir()))[:3]
    reading, writing = os.pipe()
    with running("compress", "-", "--out", tmp_path / "c", "-m", llava, stdin=reading) as process:
        os.close(reading)
        os.write(writing, "".join(f"{name}\n" for name in names).encode())
        assert read_sources(process, 3) == names
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1].count("interrupted") == 1
        assert process.returncode == 130
    os.close(writing)
    assert sorted(items_by_source(tmp_path / "c")) == names


STUCK_PROGRAM = """
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
    """Even if the program does not react to the first one."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STUCK_PROGRAM], **pipes, preexec_fn=heed_interrupts) as process:
        assert process.stdout
        for sent in (signal.SIGINT, signal.SIGTERM):
            process.stdout.readline()
            process.send_signal(sent)
        began = time.monotonic()
        assert process.wait(timeout=50) == 130
        assert time.monotonic() - began < 30


def test_nothing_to_do_is_known_without_torch(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    command = ["compress", str(folder), "--out", str(tmp_path / "c"), "-m", str(llava)]
    code = (
        "import sys; from prunesid_cli.cli.app import run\n"
        f"sys.argv = ['prunesid', *{command!r}]; code = run()\n"
        "print(int(code), *({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert run(*command).code == 0
    before = cache_files(tmp_path / "c")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, "already in the cache" in done.stderr) == ("0\n", True), done.stderr
    assert cache_files(tmp_path / "c") == before


def test_other_settings_are_not_nothing_to_do(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    command = ("compress", folder, "--out", tmp_path / "c", "-m", llava)
    assert run(*command).code == 0
    for options in (("-k", "13"), ("--dynamic",), ("--dtype", "bf16"), ("--store", "int8"), ("--method", "grid")):
        assert run(*command, *options).code == 1, options
    assert "nothing to do" in run(*command, "--dtype", "fp32").err


def test_what_a_killed_run_left_is_said(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """It is not in a shard yet, so that readers do not see it."""
    for num_saved in (0, 2):
        cache = tmp_path / f"c{num_saved}"
        if num_saved:
            write_cache(cache, [make_wide_entry(f"{number}.png") for number in range(num_saved)])
        writer = CacheWriter(cache, RUN, "0.0")
        for number in range(num_saved, 5):
            writer.add(make_wide_entry(f"{number}.png"))
        assert writer.journal
        writer.journal.sync()
        writer.journal.close(delete_files=False)
        writer.lock.release()
        for command in (("cache", "ls", cache), ("cache", "info", cache)):
            result = run(*command)
            if num_saved:
                assert (result.code, "3 items of a run that was interrupted" in result.err) == (0, True), result.err
            else:
                assert (result.code, "what an interrupted run left" in result.err) == (1, True), result.err
                assert "run the same compress command again" in result.err
