"""answer over many items and prompts: which are asked, in what order, and what a file of answers holds after anything
that can happen to a run."""

from __future__ import annotations

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
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.loading.weights import load_config, place
from prunesid_cli.pipeline.answer import WINDOW, answer
from prunesid_cli.pipeline.prompt_file import Prompt, Prompts
from prunesid_cli.tokencache import open_cache
from prunesid_cli.types import Generation
from tests.conftest import Ran, Run

TEXTS = ["what is shown?", "count", "is there a star in it, and of which colour is that then?", "what is <image> then?"]
SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> list[Path]:
    """Five, in two folders."""
    folder = tmp_path_factory.mktemp("answer")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    return [Path(shutil.copy(path, folder / "ab"[i > 2])) for i, path in enumerate(pictures[:5])]


@pytest.fixture
def cache(run: Run, llava: Path, scenes: list[Path], tmp_path: Path) -> Path:
    assert run("compress", *scenes, "-m", llava, "--out", tmp_path / "c").code == 0
    return tmp_path / "c"


@pytest.fixture
def asking(tmp_path: Path) -> Path:
    return written(tmp_path / "prompts.jsonl", *({"prompt": text} for text in TEXTS))


def written(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines(path: Path) -> list[dict]:
    """What a file of answers holds, less how long they took and what stdout is not told."""
    found = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [{k: v for k, v in record.items() if k not in ("ms", "digest", "by")} for record in found]


def told(ran: Ran) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "ms"} for record in ran.records]


def test_item_by_item_whatever_the_batch(run: Run, cache: Path, scenes: list[Path], asking: Path) -> None:
    """More prompts than a window of the smallest batch holds; the answers are those of each prompt alone."""
    many = [{"prompt": f"{text} {number}"} for number in range(5) for text in TEXTS]
    written(asking, *many)
    runs = [run("answer", cache, "--prompts", asking, *SHORT, "--batch-size", size) for size in (1, 3, 8)]
    asked = [(r["id"], r["source"], r["prompt"]) for r in runs[0].records]
    pairs = [(str(path), one["prompt"]) for path in scenes for one in many]
    assert asked == [(number, *pair) for number, pair in enumerate(pairs)]
    assert len(pairs) > WINDOW
    assert told(runs[0]) == told(runs[1]) == told(runs[2])
    for text in TEXTS[1:]:
        alone = {r["source"]: r["answer"] for r in run("answer", cache, f"{text} 3", *SHORT).records}
        assert alone == {r["source"]: r["answer"] for r in runs[2].records if r["prompt"] == f"{text} 3"}


def test_sampling_is_the_same_whatever_is_asked_beside_it(run: Run, cache: Path, asking: Path) -> None:
    common = ("answer", cache, *SHORT, "--temperature", "2")
    many = run(*common, "--prompts", asking).records
    alone = run(*common, TEXTS[1]).records
    assert [r["answer"] for r in many if r["prompt"] == TEXTS[1]] == [r["answer"] for r in alone]
    assert len({r["answer"] for r in many}) > 1


def sources(run: Run, cache: Path, *args: object) -> list[str]:
    ran = run("answer", cache, "count", *SHORT, *args)
    return [Path(r["source"]).name for r in ran.records]


def test_where(run: Run, cache: Path, scenes: list[Path]) -> None:
    assert sources(run, cache, "--where", "scene[13].png") == ["scene1.png", "scene3.png"]
    assert sources(run, cache, "--where", "*/b/*") == ["scene3.png", "scene4.png"]
    assert sources(run, cache, "--where", "a/*", "--where", str(scenes[4])) == ["scene4.png"]
    for nothing in ("*.jpg", "b/scene3.png"):
        ran = run("answer", cache, "count", "--where", nothing)
        assert (ran.code, ran.out, "no item" in ran.err) == (2, "", True)


def test_prompts_name_their_items(run: Run, cache: Path, scenes: list[Path], asking: Path) -> None:
    digest = next(item.digest for _, item in open_cache(cache).items() if item.source == str(scenes[2]))
    written(
        asking,
        {"prompt": "first", "where": "*/b/*"},
        {"prompt": "all"},
        {"prompt": "second", "digest": digest[:8].upper()},
        {"prompt": "third", "source": str(scenes[3])},
        {"prompt": "first", "source": str(scenes[3])},
    )
    found = [(Path(r["source"]).name, r["prompt"]) for r in run("answer", cache, "--prompts", asking, *SHORT).records]
    assert found == [
        ("scene0.png", "all"),
        ("scene1.png", "all"),
        ("scene2.png", "all"),
        ("scene2.png", "second"),
        ("scene3.png", "first"),  # and though two lines mean it, once
        ("scene3.png", "all"),
        ("scene3.png", "third"),
        ("scene4.png", "first"),
        ("scene4.png", "all"),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ({"digest": "abc"}, "at least 8"),
        ({"digest": "no digest!"}, "at least 8"),
        ({"were": "*.jpg"}, "unknown field 'were'"),
        ({"where": "*", "source": "scene1.png"}, "by source and by where"),
    ],
)
def test_mistakes_are_found_before_a_model_is_looked_for(
    run: Run, cache: Path, asking: Path, name: dict, words: str
) -> None:
    written(asking, {"prompt": "count"}, {"prompt": "count"} | name)
    ran = run("answer", cache, "--prompts", asking, "-m", "nowhere/at-all")
    assert (ran.code, ran.out, words in ran.err) == (2, "", True), ran.err


def test_a_prompt_about_nothing_costs_itself_alone(
    run: Run, llava: Path, cache: Path, asking: Path, tmp_path: Path
) -> None:
    bad, own = tmp_path / "bad.png", tmp_path / "own"
    bad.write_text("no picture")
    shutil.copytree(cache, own)
    assert run("compress", bad, "-m", llava, "--out", own).code == 3
    names = [{"source": str(bad)}, {"digest": "0" * 12}, {"where": "*.jpg"}, {"source": "nowhere.png"}]
    written(asking, {"prompt": "count"})
    whole = told(run("answer", own, "--prompts", asking, *SHORT))
    written(asking, *({"prompt": "count"} | name for name in names), {"prompt": "count"})
    ran = run("answer", own, "--prompts", asking, *SHORT)
    assert (ran.code, told(ran)) == (3, whole)
    for number, words in enumerate((f"{bad}, which failed: ", "digest 0", "where *.jpg", "nowhere.png"), 1):
        assert f"{asking}, line {number}: the cache has no item {words}" in ran.err
    written(asking, *({"prompt": "count"} | name for name in names))
    ran = run("answer", own, "--prompts", asking, "-m", "nowhere/at-all")
    assert (ran.code, ran.out, "no item of" in ran.err) == (2, "", True), ran.err


def test_no_more_queries_are_drawn_than_are_worked_on(llava: Path, cache: Path) -> None:
    found = resolve(str(llava))
    language = load_family("llava").language(found, place("cpu", "auto", "auto", load_config(found)))
    drawn = 0

    def endless() -> Iterator:
        nonlocal drawn
        while True:
            for query in Prompts([Prompt("count")]).queries(open_cache(cache), ()):
                drawn += 1
                yield query

    replies = answer(language, endless(), Generation(max_new_tokens=1), 2)
    assert sum(len(next(replies)) for _ in range(3)) <= drawn <= 2 * WINDOW


def test_a_file_of_answers(run: Run, cache: Path, asking: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "--prompts", asking, *SHORT)
    expected = told(run(*command))
    ran = run(*command, "--out", out)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("20 answers in")
    assert lines(out) == expected
    before = out.read_bytes()
    again = run(*command, "--out", out, "--json")
    assert (again.code, again.out, "all of 20 answers were there" in again.err) == (0, "", True)
    assert out.read_bytes() == before
    out.unlink()
    assert told(run(*command, "--out", out, "--json")) == expected == lines(out)


@pytest.mark.parametrize("left", [0, 1, 7, 18])
@pytest.mark.parametrize("torn", [0, 1, 40, -1])
def test_what_was_cut_short_goes_on(run: Run, cache: Path, asking: Path, tmp_path: Path, left: int, torn: int) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "--prompts", asking, *SHORT)
    run(*command, "--out", out)
    whole, records = lines(out), out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(records[:left]) + records[left][:torn])
    ran = run(*command, "--out", out)
    assert (ran.code, lines(out)) == (0, whole)
    assert ran.err.startswith(f"{20 - left} answers in")
    assert out.read_bytes().startswith(b"".join(records[:left]))


def test_what_failed_is_asked_again(run: Run, cache: Path, asking: Path, scenes: list[Path], tmp_path: Path) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "--prompts", asking, *SHORT)
    whole = told(run(*command))
    (shard,) = cache.glob("prunesid-0*.safetensors")
    sound = shard.read_bytes()
    at = next(
        read.tokens.start + item.rows[0] * read.tokens.row
        for read, item in open_cache(cache).items()
        if "scene2" in item.source
    )
    shard.write_bytes(sound[:at] + b"damaged!" + sound[at + 8 :])
    for _ in range(2):
        ran = run(*command, "--out", out)
        assert (ran.code, "4 failed" in ran.err) == (3, True)
        assert [r["id"] for r in lines(out) if "error" in r] == [8, 9, 10, 11]
        assert [r for r in lines(out) if "answer" in r] == [r for r in whole if r["source"] != str(scenes[2])]
    shard.write_bytes(sound)
    ran = run(*command, "--out", out)
    assert (ran.code, lines(out)) == (0, whole)
    assert ran.err.startswith("4 answers in")


def test_more_prompts_and_more_items(
    run: Run, llava: Path, cache: Path, asking: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """New ones alone are asked, and in the end all are in order."""
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "--prompts", asking, *SHORT)
    run(*command, "--out", out)
    run("compress", pictures[7], "-m", llava, "--out", cache)
    written(asking, {"prompt": "a new one"}, *({"prompt": text} for text in TEXTS))
    ran = run(*command, "--out", out)
    assert ran.err.startswith("10 answers in")
    assert lines(out) == told(run(*command))


def test_a_picture_that_changed_is_asked_about_again(
    run: Run, llava: Path, cache: Path, scenes: list[Path], pictures: list[Path], tmp_path: Path
) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "count", *SHORT)
    run(*command, "--out", out)
    before = scenes[1].read_bytes()
    shutil.copy(pictures[8], scenes[1])
    try:
        run("compress", scenes[1], "-m", llava, "--out", cache)
    finally:
        scenes[1].write_bytes(before)
    ran = run(*command, "--out", out)
    assert ran.err.startswith("1 answer in")
    assert lines(out) == told(run(*command))


@pytest.mark.parametrize("other", [{"digest": "0" * 64}, {"sampling": "8 frames"}])
def test_an_answer_about_another_input_of_that_name(run: Run, cache: Path, tmp_path: Path, other: dict) -> None:
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "count", *SHORT, "--out", tmp_path / "answers.jsonl")
    run(*command)
    whole, records = lines(out), [json.loads(line) for line in out.read_text().splitlines()]
    written(out, *records[:2], records[2] | other, *records[3:])
    ran = run(*command)
    assert (ran.err.startswith("1 answer in"), lines(out)) == (True, whole)


def test_another_file_is_left_alone(
    run: Run, llava: Path, cache: Path, asking: Path, pictures: list[Path], tmp_path: Path
) -> None:
    out, command = (
        tmp_path / "answers.jsonl",
        ("answer", cache, "--prompts", asking, *SHORT, "--out", tmp_path / "answers.jsonl"),
    )
    run(*command)
    whole = out.read_bytes()
    run("compress", pictures[7], "-m", llava, "--out", tmp_path / "other")
    others = {
        "4 new tokens": ("answer", cache, "--prompts", asking, "--max-new-tokens", 5, "--out", out),
        "temperature 1": (*command, "--temperature", "1"),
        "what is not asked here": ("answer", cache, "count", *SHORT, "--out", out),
        "20 answers to": ("answer", tmp_path / "other", "--prompts", asking, *SHORT, "--out", out),
    }
    for words, args in others.items():
        ran = run(*args)
        assert (ran.code, words in ran.err, "--out" in ran.err) == (2, True, True), ran.err
        assert out.read_bytes() == whole
    for text in ("notes", "notes\n", '{"id": 1}\n', "\n"):
        out.write_text(text)
        ran = run(*command)
        assert (ran.code, "line 1 is no answer" in ran.err) == (2, True), ran.err
        assert out.read_text() == text


def test_answers_to_what_is_not_asked_are_forgotten_if_that_is_wished(
    run: Run, cache: Path, asking: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    run("answer", cache, "--prompts", asking, *SHORT, "--out", out)
    command = ("answer", cache, "count", *SHORT)
    assert "--forget" in run(*command, "--out", out).err
    ran = run(*command, "--out", out, "--forget")
    assert (ran.code, "let go of " in ran.err) == (0, True), ran.err
    assert lines(out) == told(run(*command))
    assert "let go" not in run(*command, "--out", out, "--forget").err
    assert run(*command, "--forget").code == 2


def test_places_that_cannot_be_written(run: Run, cache: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "no file"),
        (tmp_path / "pipe", "no file"),
        (tmp_path / "no" / "a", "no such folder"),
    ):
        ran = run("answer", cache, "count", "--out", path)
        assert (ran.code != 0, words in ran.err) == (True, True), ran.err


def test_one_run_at_a_time(run: Run, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with FileLock(tmp_path / ".answers.jsonl.lock"):
        ran = run("answer", cache, "count", "--out", out)
        assert (ran.code, "another run is writing" in ran.err, out.exists()) == (1, True, False)
    assert run("answer", cache, "count", *SHORT, "--out", out).code == 0


def test_file_names_of_any_bytes(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.png"))
    shutil.copy(pictures[0], odd)
    run("compress", odd, "-m", llava, "--out", tmp_path / "c")
    for words in ("1 answer in", "all of 1 answer"):
        ran = run("answer", tmp_path / "c", "count", *SHORT, "--out", tmp_path / "a")
        assert (ran.code, ran.err.startswith(words)) == (0, True), ran.err


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


@pytest.mark.slow
def test_a_full_disk(run: Run, cache: Path, asking: Path, tmp_path: Path) -> None:
    """Stood in for by a limit on the size of files, which ends a write in the same way: a part of it, then an error."""
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "--prompts", asking, *SHORT, "--batch-size", 1)
    args = [sys.executable, "-m", "prunesid_cli", *map(str, command), "--out", str(out)]
    ended = subprocess.run(args, capture_output=True, text=True, timeout=120, preexec_fn=limited)
    assert (ended.returncode, "cannot write to" in ended.stderr, "goes on" in ended.stderr) == (1, True, True), (
        ended.stderr
    )
    assert 0 < len(lines(out)) < 20
    assert out.read_bytes().endswith(b"}\n")
    run(*command, "--out", out)
    assert lines(out) == told(run(*command))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_and_resumed(run: Run, cache: Path, asking: Path, tmp_path: Path, sent: signal.Signals) -> None:
    written(asking, *({"prompt": f"{text} {number}"} for number in range(12) for text in TEXTS))
    out, command = tmp_path / "answers.jsonl", ("answer", cache, "--prompts", asking, *SHORT, "--batch-size", 2)
    args = [sys.executable, "-m", "prunesid_cli", *map(str, command), "--out", str(out), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (a shell's background job ignores it)
    with subprocess.Popen(args, **pipes, text=True, preexec_fn=heed) as process:
        assert process.stdout
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # so that it cannot come to its end before somebody reads
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        ends = time.monotonic() + 60
        while time.monotonic() < ends and (not out.exists() or out.stat().st_size < 2000):
            time.sleep(0.02)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if sent == signal.SIGKILL else 130)
    assert sent == signal.SIGKILL or "go on with: prunesid answer " in err
    safe = len(lines(out))
    assert 0 < safe < 240
    ran = run(*command, "--out", out)
    counted = re.match(r"(\d+) answers in", ran.err)
    assert counted and int(counted[1]) == 240 - safe
    assert lines(out) == told(run(*command, "--batch-size", 8))
