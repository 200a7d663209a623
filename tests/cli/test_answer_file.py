"""answer --out: what the file holds after a run is repeated, interrupted, changed or full."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from prunesid_cli.tokencache import open_cache
from tests.cli.conftest import QUESTIONS, SHORT
from tests.cli.helpers import printed_answers, stored_answers, write_jsonl
from tests.cli.processes import prunesid, running, shell
from tests.conftest import PROMPT, Run

OTHER_DATA = '{"id": 1, "source": "a.png", "text": "dear"}'
"""A file of someone else whose lines begin like ours, without a line end."""


def test_answers_are_written_to_a_file(run: Run, scene_cache: Path, prompts_file: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", scene_cache, "--prompts", prompts_file, *SHORT)
    expected = printed_answers(run(*command))
    result = run(*command, "--out", out)
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("20 answers in")
    assert stored_answers(out) == expected
    before = out.read_bytes()
    again = run(*command, "--out", out, "--json")
    assert (again.code, again.out, "all of 20 answers were there" in again.err) == (0, "", True)
    assert out.read_bytes() == before
    out.unlink()
    assert printed_answers(run(*command, "--out", out, "--json")) == expected == stored_answers(out)


@pytest.mark.parametrize("num_lines", [0, 1, 7, 18])
def test_a_truncated_file_is_completed(
    run: Run, scene_cache: Path, prompts_file: Path, tmp_path: Path, num_lines: int
) -> None:
    """It ends in some lines and a part of the next one: none of it, one byte, 40 bytes, or all but the line end."""
    out, command = tmp_path / "answers.jsonl", ("answer", scene_cache, "--prompts", prompts_file, *SHORT)
    run(*command, "--out", out)
    complete, lines = stored_answers(out), out.read_bytes().splitlines(keepends=True)
    for num_bytes in (0, 1, 40, -1):
        out.write_bytes(b"".join(lines[:num_lines]) + lines[num_lines][:num_bytes])
        result = run(*command, "--out", out)
        assert (result.code, stored_answers(out)) == (0, complete)
        num_kept = num_lines + (num_bytes == -1)
        assert result.err.startswith(f"{20 - num_kept} answer")
        assert out.read_bytes().startswith(b"".join(lines[:num_lines]))


def test_failed_answers_are_retried(
    run: Run, scene_cache: Path, prompts_file: Path, scenes: list[Path], tmp_path: Path
) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", scene_cache, "--prompts", prompts_file, *SHORT)
    expected = printed_answers(run(*command))
    (shard,) = scene_cache.glob("prunesid-0*.safetensors")
    undamaged = shard.read_bytes()
    at = next(
        read.tokens.start + item.rows[0] * read.tokens.row_bytes
        for read, item in open_cache(scene_cache).items()
        if "scene2" in item.source
    )
    shard.write_bytes(undamaged[:at] + b"damaged!" + undamaged[at + 8 :])
    for _ in range(2):
        result = run(*command, "--out", out)
        assert (result.code, "4 failed" in result.err) == (3, True)
        assert [r["id"] for r in stored_answers(out) if "error" in r] == [8, 9, 10, 11]
        assert [r for r in stored_answers(out) if "answer" in r] == [
            r for r in expected if r["source"] != str(scenes[2])
        ]
    shard.write_bytes(undamaged)
    result = run(*command, "--out", out)
    assert (result.code, stored_answers(out)) == (0, expected)
    assert result.err.startswith("4 answers in")


def test_new_prompts_and_new_items_are_added_in_order(
    run: Run, llava: Path, scene_cache: Path, prompts_file: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """Only new queries are answered."""
    out, command = tmp_path / "answers.jsonl", ("answer", scene_cache, "--prompts", prompts_file, *SHORT)
    run(*command, "--out", out)
    run("compress", pictures[7], "-m", llava, "--out", scene_cache)
    write_jsonl(prompts_file, {"prompt": "a new one"}, *({"prompt": text} for text in QUESTIONS))
    result = run(*command, "--out", out)
    assert result.err.startswith("10 answers in")
    assert stored_answers(out) == printed_answers(run(*command))


def test_a_changed_picture_is_asked_about_again(
    run: Run, llava: Path, scene_cache: Path, scenes: list[Path], pictures: list[Path], tmp_path: Path
) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", scene_cache, "count", *SHORT)
    run(*command, "--out", out)
    before = scenes[1].read_bytes()
    shutil.copy(pictures[8], scenes[1])
    try:
        run("compress", scenes[1], "-m", llava, "--out", scene_cache)
    finally:
        scenes[1].write_bytes(before)
    result = run(*command, "--out", out)
    assert result.err.startswith("1 answer in")
    assert stored_answers(out) == printed_answers(run(*command))


@pytest.mark.parametrize("other", [{"digest": "0" * 64}, {"sampling": "8 frames"}])
def test_an_answer_about_an_earlier_version_is_replaced(
    run: Run, scene_cache: Path, tmp_path: Path, other: dict
) -> None:
    out, command = (
        tmp_path / "answers.jsonl",
        ("answer", scene_cache, "count", *SHORT, "--out", tmp_path / "answers.jsonl"),
    )
    run(*command)
    expected, records = stored_answers(out), [json.loads(line) for line in out.read_text().splitlines()]
    write_jsonl(out, *records[:2], records[2] | other, *records[3:])
    result = run(*command)
    assert (result.err.startswith("1 answer in"), stored_answers(out)) == (True, expected)


def test_a_file_of_another_run_is_left_unchanged(
    run: Run, llava: Path, scene_cache: Path, prompts_file: Path, pictures: list[Path], tmp_path: Path
) -> None:
    out, command = (
        tmp_path / "answers.jsonl",
        ("answer", scene_cache, "--prompts", prompts_file, *SHORT, "--out", tmp_path / "answers.jsonl"),
    )
    run(*command)
    expected = out.read_bytes()
    run("compress", pictures[7], "-m", llava, "--out", tmp_path / "other")
    others = {
        "4 new tokens": ("answer", scene_cache, "--prompts", prompts_file, "--max-new-tokens", 5, "--out", out),
        "temperature 1": (*command, "--temperature", "1"),
        "prompts that are not asked here": ("answer", scene_cache, "count", *SHORT, "--out", out),
        "20 answers to": ("answer", tmp_path / "other", "--prompts", prompts_file, *SHORT, "--out", out),
    }
    for words, args in others.items():
        result = run(*args)
        assert (result.code, words in result.err, "--out" in result.err) == (2, True, True), result.err
        assert out.read_bytes() == expected
    for text in ("notes", "notes\n", '{"id": 1}\n', '{"id": 1}', '{"id": 1, "text": "dear', OTHER_DATA, "\n"):
        out.write_text(text)
        result = run(*command)
        assert (result.code, "line 1 is not an answer" in result.err) == (2, True), result.err
        assert out.read_text() == text


def test_forget_removes_answers_that_are_no_longer_asked_for(
    run: Run, scene_cache: Path, prompts_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    run("answer", scene_cache, "--prompts", prompts_file, *SHORT, "--out", out)
    command = ("answer", scene_cache, "count", *SHORT)
    assert "--forget" in run(*command, "--out", out).err
    result = run(*command, "--out", out, "--forget")
    assert (result.code, "removed " in result.err) == (0, True), result.err
    assert stored_answers(out) == printed_answers(run(*command))
    assert "removed" not in run(*command, "--out", out, "--forget").err
    assert run(*command, "--forget").code == 2


def test_paths_that_cannot_be_written_are_refused(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "is not a file"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path / "no" / "a", "no such folder"),
    ):
        result = run("answer", scene_cache, "count", "--out", path)
        assert (result.code != 0, words in result.err) == (True, True), result.err


def test_answers_go_to_stdout_by_name(
    run: Run, scene_cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", scene_cache, "count", *SHORT, "--out")
    run(*command, out)
    capfd.readouterr()
    assert run(*command, "/dev/stdout").code == 0
    (tmp_path / "printed").write_text(capfd.readouterr().out)
    assert stored_answers(tmp_path / "printed") == stored_answers(out) != []
    hint = "\nhint: name another --out\n"
    for target, code, words in (("null", 0, "5 answers in"), ("full", 1, f"/dev/full: No space left on device{hint}")):
        result = run(*command, f"/dev/{target}")
        assert (result.code, words in result.err, result.out) == (code, True, ""), result.err


@pytest.mark.slow
def test_answers_go_into_a_pipe(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "answers.jsonl", f"answer {scene_cache} count {' '.join(SHORT)} --out"
    run(*command.split(), out)
    done = shell(f"prunesid {command} /dev/stdout")
    (tmp_path / "printed").write_text(done.stdout)
    assert (done.returncode, stored_answers(tmp_path / "printed")) == (0, stored_answers(out)), done.stderr
    done = shell(f"prunesid {command} /dev/stdout | true")
    assert (done.returncode, "rror" in done.stderr) == (0, False), done.stderr


def test_a_run_that_fails_leaves_no_empty_file(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    result = run("answer", scene_cache, "<image>", "--out", out)
    assert (result.code, out.exists()) == (2, False), result.err


def test_a_second_run_is_refused(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with FileLock(tmp_path / ".answers.jsonl.lock"):
        result = run("answer", scene_cache, "count", "--out", out)
        assert (result.code, "another run is writing" in result.err, out.exists()) == (1, True, False)
    assert run("answer", scene_cache, "count", *SHORT, "--out", out).code == 0


def test_file_names_may_have_any_bytes(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.png"))
    shutil.copy(pictures[0], path)
    run("compress", path, "-m", llava, "--out", tmp_path / "c")
    for words in ("1 answer in", "all of 1 answer"):
        result = run("answer", tmp_path / "c", "count", *SHORT, "--out", tmp_path / "a")
        assert (result.code, result.err.startswith(words)) == (0, True), result.err


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


@pytest.mark.slow
def test_a_full_disk(run: Run, scene_cache: Path, prompts_file: Path, tmp_path: Path) -> None:
    """A limit on the size of files ends a write as a full disk does: a part of it is written, then it fails."""
    out, command = (
        tmp_path / "answers.jsonl",
        ("answer", scene_cache, "--prompts", prompts_file, *SHORT, "--batch-size", 1),
    )
    ended = prunesid(*command, "--out", out, preexec_fn=limit_file_size)
    assert (ended.returncode, "cannot write to" in ended.stderr, "continues" in ended.stderr) == (1, True, True), (
        ended.stderr
    )
    assert 0 < len(stored_answers(out)) < 20
    assert out.read_bytes().endswith(b"}\n")
    run(*command, "--out", out)
    assert stored_answers(out) == printed_answers(run(*command))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_and_resumed(
    run: Run, scene_cache: Path, prompts_file: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    write_jsonl(prompts_file, *({"prompt": f"{text} {number}"} for number in range(12) for text in QUESTIONS))
    out, command = (
        tmp_path / "answers.jsonl",
        ("answer", scene_cache, "--prompts", prompts_file, *SHORT, "--batch-size", 2),
    )
    with running(*command, "--out", out) as process:
        assert process.stdout
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # a small pipe blocks the process before its end: nothing reads stdout
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not out.exists() or out.stat().st_size < 2000):
            time.sleep(0.02)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if sent == signal.SIGKILL else 130)
    assert sent == signal.SIGKILL or "continue with: prunesid answer " in err
    stored = len(stored_answers(out))
    assert 0 < stored < 240
    result = run(*command, "--out", out)
    counted = re.match(r"(\d+) answers in", result.err)
    assert counted and int(counted[1]) == 240 - stored
    assert stored_answers(out) == printed_answers(run(*command, "--batch-size", 8))


def test_nothing_to_ask_is_known_without_torch(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    command = ["answer", str(scene_cache), PROMPT, "--out", str(tmp_path / "a.jsonl")]
    code = (
        "import sys; from prunesid_cli.cli.app import run\n"
        f"sys.argv = ['prunesid', *{command!r}]; code = run()\n"
        "print(int(code), *({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert run(*command).code == 0
    before = (tmp_path / "a.jsonl").read_bytes()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, "answers were there" in done.stderr) == ("0\n", True), done.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_answers_are_written_as_a_table(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    """A later run continues it, also one that was interrupted. It has what the file of lines has."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "what is shown?", "id": "a", "note": "x, \\"y\\"\\nz"}\n')
    table, lines = tmp_path / "answers.csv", tmp_path / "answers.jsonl"
    command = ("answer", scene_cache, "--prompts", tmp_path / "prompts.jsonl", "--out")
    assert run(*command, lines).code == 0
    assert run(*command, table).code == 0
    expected = [json.loads(line) for line in lines.read_text().splitlines()]

    def rows() -> list[dict[str, str]]:
        with table.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def without_time(record: dict[str, Any]) -> dict[str, Any]:
        return {name: str(value) for name, value in record.items() if name not in ("ms", "by", "fields", "sampling")}

    assert [without_time(row) for row in rows()] == [without_time(record) for record in expected]
    assert rows()[0]["note"] == 'x, "y"\nz'
    hidden = tmp_path / ".answers.csv.jsonl"
    kept = hidden.read_bytes()
    hidden.write_bytes(kept[: len(kept) // 2])  # as a killed run leaves it, before it wrote the table
    table.unlink()
    again = run(*command, table)
    assert (again.code, "were there" in again.err) == (0, True)
    assert [without_time(row) for row in rows()] == [without_time(record) for record in expected]
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "is there a star?"}\n')
    assert run(*command, table).code == 0
    assert len(rows()) == 2 * len(expected)


def test_a_table_of_something_else_is_left_unchanged(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("a,b\n")
    ran = run("answer", scene_cache, "what is shown?", "--out", tmp_path / "answers.csv")
    assert (ran.code, ran.out) == (2, "")
    assert (tmp_path / "answers.csv").read_text() == "a,b\n"
    ran = run("answer", scene_cache, "what is shown?", "--out", tmp_path / "answers.xlsx")
    assert (ran.code, ".jsonl or .csv" in ran.err) == (2, True)
