"""Copies, renamed folders and other paths to the same pictures: encoded once, asked about once, reported by path."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesid_cli.pipeline import distinct_queries
from prunesid_cli.pipeline.distinct_queries import answer_distinct
from prunesid_cli.pipeline.query import Query, Reply
from prunesid_cli.tokencache import open_cache, read_tokens, verify_cache
from prunesid_cli.types import Answer
from tests.caches import items_by_source
from tests.cli.helpers import cache_files
from tests.conftest import PROMPT, Run


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `a` with four pictures and a copy of the first, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for path in pictures[:4]:
        shutil.copy(path, tmp_path / "a")
    shutil.copy(pictures[0], tmp_path / "a/zebra.png")
    return tmp_path


def statuses(run: Run, *args: object) -> list[str]:
    """What became of each input: encoded, copy or held."""
    records = run("compress", *args, "--json").records
    return ["copy" if r.get("copy") else "held" if r.get("held") else "encoded" for r in records]


@pytest.mark.parametrize("options", [(), ("--dynamic",), ("--stream",), ("--batch-size", 1)])
def test_nothing_is_encoded_twice(run: Run, llava: Path, folder: Path, options: tuple[object, ...]) -> None:
    to = ("--out", "c", "-m", llava, *options)
    assert statuses(run, "a", *to) == ["encoded"] * 4 + ["copy"]
    size = open_cache("c").index.size
    (folder / "a").rename(folder / "b")
    assert statuses(run, "b", *to) == ["copy"] * 5
    assert statuses(run, "./b", folder / "b", *to) == ["copy"] * 5
    assert statuses(run, "b", *to) == ["held"] * 5
    assert open_cache("c").index.size - size < 20_000 < size
    listed = [record["source"] for record in run("cache", "ls", "c", "--json").records]
    names = [f"scene{number}.png" for number in range(4)] + ["zebra.png"]
    assert listed == [f"{top}/{name}" for top in ("a", "b", "./b") for name in names]
    assert verify_cache(Path("c")) == (15, [])


def test_one_run_over_copies_is_reported(run: Run, llava: Path, folder: Path) -> None:
    result = run("compress", "a", "--out", "c", "-m", llava)
    assert (result.code, "compressed 4 images" in result.err, "1 with the contents of others" in result.err) == (
        0, True, True,
    )  # fmt: skip
    shutil.copytree("a", "b")
    assert "added 5 inputs with the contents of others" in run("compress", "b", "--out", "c", "-m", llava).err
    assert "10 already in the cache" in run("compress", "a", "b", "--out", "c", "-m", llava).err


def test_copies_are_found_by_worker_processes(
    run: Run, llava: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("compress", "a", "--out", "c", "-m", llava)
    run("compress", "a", "--out", "w", "-m", llava, "--workers", 2)
    assert cache_files(folder / "c") == cache_files(folder / "w")


def test_answers_by_content_are_those_by_path(run: Run, llava: Path, folder: Path) -> None:
    shutil.copytree("a", "b")
    run("compress", "a", "b", "--out", "c", "-m", llava)
    prompts = ("-p", PROMPT, "-p", "how many?")
    by_content, by_path = (run("answer", "c", *prompts, "--by", by).records for by in ("content", "path"))
    assert [record.pop("ms") == 0 for record in by_content] == ([False] * 8 + [True] * 2) + [True] * 10
    assert all(record.pop("ms") > 0 for record in by_path)
    assert by_content == by_path and len(by_path) == 20


def test_a_file_of_answers_continues_with_copies(run: Run, llava: Path, folder: Path) -> None:
    run("compress", "a", "--out", "c", "-m", llava)
    first = run("answer", "c", PROMPT, "--out", "x.jsonl")
    assert "5 answers" in first.err
    shutil.copytree("a", "b")
    run("compress", "a", "b", "--out", "c", "-m", llava)
    second = run("answer", "c", PROMPT, "--out", "x.jsonl", "--json")
    assert "5 answers" in second.err and "5 were there" in second.err
    assert [record["source"][:2] for record in second.records] == ["b/"] * 5
    assert "all of 10 answers were there" in run("answer", "c", PROMPT, "--out", "x.jsonl").err


def test_copies_of_a_picture_that_fails_are_retried(
    run: Run, llava: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower gives NaN: each copy fails by its own name, and a later run encodes it."""
    from prunesid_cli.errors import NonFiniteError
    from prunesid_cli.pipeline.pruner import Pruner

    encode = Pruner.encode

    def fail(self: Pruner, pixels: object) -> object:
        raise NonFiniteError("NaN", "", [0])

    monkeypatch.setattr(Pruner, "encode", fail)
    result = run("compress", "a/scene0.png", "a/zebra.png", "--out", "c", "-m", llava)
    assert result.code == 3 and all(f"error: a/{n}.png: the vision" in result.err for n in ("scene0", "zebra"))
    monkeypatch.setattr(Pruner, "encode", encode)
    assert statuses(run, "a/scene0.png", "a/zebra.png", "--out", "c", "-m", llava) == ["encoded", "copy"]


def test_the_tokens_of_a_copy_outlive_the_original(run: Run, llava: Path, folder: Path) -> None:
    run("compress", "a", "--out", "c", "-m", llava)
    expected = {item.digest: next(read_tokens(shard, [item])).tokens for shard, item in open_cache("c").items()}
    (folder / "a").rename(folder / "b")
    run("compress", "b", "--out", "c", "-m", llava)
    assert "removed 5 missing inputs" in run("cache", "gc", "c", "--force").err
    assert items_by_source(Path("c")).keys() == {f"b/{path.name}" for path in (folder / "b").iterdir()}
    for shard, item in open_cache("c").items():
        assert next(read_tokens(shard, [item])).tokens.equal(expected[item.digest])


@pytest.mark.parametrize("max_passed", [1, 3, 4096])
@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("order", ["aab", "abab", "abcabcabc", "aaaaaaab", "abccccccccba", "a"])
def test_engines_are_asked_each_content_once(
    tmp_path: Path, order: str, window: int, max_passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies come in the order of the queries, whatever the engine's window and the number of copies are."""
    from dataclasses import replace

    from tests.caches import make_wide_entry, write_cache

    monkeypatch.setattr(distinct_queries, "MAX_PASSED", max_passed)
    entries = [make_wide_entry(letter) for letter in order]
    named = [
        replace(entry, provenance=replace(entry.provenance, source=f"{number}")) for number, entry in enumerate(entries)
    ]
    cache = open_cache(write_cache(tmp_path / "c", named))
    asked = list[str]()

    def engine(queries: Iterator[Query]) -> Iterator[list[Reply]]:
        from itertools import islice

        while taken := list(islice(queries, window)):
            asked.extend(f"{order[int(query.item.source)]} {query.prompt}" for query in taken)
            yield [Reply(query, Answer(order[int(query.item.source)] + query.prompt, 1, 1), 1.0) for query in taken]

    pairs = [(shard, item, prompt) for shard, item in cache.items() for prompt in ("x", "y")]
    queries = (Query(number, prompt, shard, item) for number, (shard, item, prompt) in enumerate(pairs))
    replies = [reply for batch in answer_distinct(engine, queries, cache) for reply in batch]
    assert [reply.query.number for reply in replies] == list(range(2 * len(order)))
    assert [reply.answer.text for reply in replies if reply.answer] == [a + prompt for a in order for prompt in "xy"]
    assert sorted(asked) == sorted(f"{letter} {prompt}" for letter in set(order) for prompt in "xy")
