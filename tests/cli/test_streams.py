"""What the commands read from stdin, and what they do when a stream is closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import hostile
from tests.cli.processes import shell
from tests.conftest import PROMPT, Run


def test_stdin_is_a_picture_a_prompt_or_a_list(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    expected = run("ask", "-m", llava, pictures[0], PROMPT).out
    assert run("ask", "-m", llava, "-", PROMPT, stdin=pictures[0].read_bytes()).out == expected
    assert run("ask", "-m", llava, pictures[0], "-", stdin=PROMPT.encode() + b"\n").out == expected
    lines = "".join(f"{path}\n" for path in pictures[:3]).encode()
    assert run("compress", "-", "--out", tmp_path / "c", "-m", llava, stdin=lines).code == 0
    nul = "\0".join(map(str, pictures[:3])).encode()
    again = run("compress", "-", "-0", "--out", tmp_path / "c", "-m", llava, stdin=nul)
    assert "3 already in the cache" in again.err


def test_invisible_characters_are_escaped_in_messages(run: Run, tmp_path: Path) -> None:
    names = {"a\ufeff.png": r"a\ufeff.png", "\u202egnp.exe": r"\u202egnp.exe", "b\u200b.png": r"b\u200b.png"}
    names |= {"c\xa0d.png": r"c\xa0d.png"}
    result = run("compress", "-", "--out", tmp_path / "c", stdin="".join(f"{name}\n" for name in names).encode())
    assert result.code == 3
    for shown in names.values():
        assert f"error: {shown}: no such file or folder\n" in result.err
    result = run("compress", "-", "--out", tmp_path / "c", stdin=b"none.png\nb\0.png\n")
    assert "error: b\\x00.png: a name cannot hold a NUL\n" in result.err


def test_a_list_may_have_a_byte_order_mark_and_blanks(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    lines = "\ufeff" + "".join(f"{path} \r\n" for path in pictures[:3])
    result = run("compress", "-", "--out", tmp_path / "c", "-m", llava, stdin=lines.encode())
    assert (result.code, "compressed 3 images" in result.err) == (0, True), result.err
    result = run("compress", "-", "--out", tmp_path / "d", "-m", llava, stdin=lines.encode("utf-16"))
    assert (result.code, "error: the list on stdin is UTF-16, not UTF-8\nhint: " in result.err) == (2, True), result.err


def test_answer_reads_a_prompt_from_stdin(run: Run, scene_cache: Path) -> None:
    piped = run("answer", scene_cache, "-", stdin=b"what is shown?\n")
    assert [record["prompt"] for record in piped.records] == [PROMPT] * 5
    piped = run("answer", scene_cache, "-", stdin="\ufeffwhat is\r\nshown?\r\n".encode())
    assert [record["prompt"] for record in piped.records] == ["what is\nshown?"] * 5
    assert run("answer", scene_cache, "-", stdin=b" \n").code == 2


def test_empty_and_closed_stdin_are_errors(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    for args, code in ((("-", PROMPT), 1), ((pictures[0], "-"), 2)):
        result = run("ask", "-m", llava, *args)
        assert (result.code, "error: stdin is empty\nhint: pipe a p" in result.err) == (code, True), result.err
    closed = run("compress", "-", "--out", tmp_path / "c", "-m", llava, stdin=None)
    assert (closed.code, "- reads stdin, which is closed" in closed.err) == (2, True), closed.err


def test_a_video_on_stdin_is_refused_with_a_hint(run: Run, llava: Path) -> None:
    result = run("ask", "-m", llava, "-", PROMPT, stdin=hostile.ftyp(b"isom"))
    assert (result.code, "hint: name its file: clips are not read from stdin" in result.err) == (1, True)


def test_a_closed_pipe_ends_quietly(llava: Path, pictures: list[Path], tmp_path: Path, run: Run) -> None:
    run("compress", *pictures, "--out", tmp_path / "c", "-m", llava)
    for command in (f"cache ls {tmp_path / 'c'}", "--help", "ask --help", "cache"):
        done = shell(f"prunesid {command} | true")
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.parametrize("command", ["", "--help", "ask --help", "cache", "--version", "models"])
def test_a_full_disk_is_one_error(command: str) -> None:
    done = shell(f"prunesid {command} >/dev/full")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2), done.stderr
    assert done.stderr.startswith("error: cannot write the result: No space left on device\nhint: "), done.stderr
    assert "bug" not in done.stderr


def test_stderr_may_be_full() -> None:
    done = shell("prunesid ask none.png 'what?' 2>/dev/full")
    assert done.returncode == 1


def test_a_prompt_that_is_not_utf_8_is_refused(run: Run, scene_cache: Path, pictures: list[Path]) -> None:
    for command in (("ask", pictures[0]), ("answer", scene_cache)):
        for prompt, stdin in (("caf\udce9?", b""), ("\ud83d", b""), ("-", "café?".encode("latin-1"))):
            result = run(*command, prompt, stdin=stdin)
            assert (result.code, "not UTF-8" in result.err, "bug" in result.err) == (2, True, False), result.err


@pytest.mark.slow
def test_closed_streams(llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    ask = f"prunesid ask -m {llava} {pictures[0]} 'what is shown?'"
    compress = f"prunesid compress -m {llava} {pictures[0]} --out {tmp_path}/c"
    message = "error: stdout is closed, there is nowhere to write a result\nhint: leave out >&-\n"
    for command in (
        ask,
        f"{compress} --json",
        "prunesid models",
        "prunesid --version",
        "prunesid --help",
        "prunesid ask -h",
    ):
        done = shell(f"{command} >&-")
        assert (done.returncode, done.stderr) == (1, message), command
    done = shell(f"{compress} -q >&-; prunesid cache verify {tmp_path}/c")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 item good, 0 faults\n", "")
    done = shell(f"{ask} 2>&-")
    assert (done.returncode, done.stdout) == (0, shell(ask).stdout)
    assert shell(f"{ask} -k 0 2>&-").returncode == 2
    done = shell(f"{compress.replace(str(pictures[0]), '-')} <&-")
    assert (done.returncode, "- reads stdin, which is closed" in done.stderr) == (2, True)
