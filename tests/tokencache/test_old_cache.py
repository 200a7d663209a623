"""Caches of version 0.1.0 are listed, verified, answered and continued by today's code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prunesid_cli.tokencache import open_cache, read_header
from tests.conftest import Run

ROOT = Path(__file__).parents[2]
OLD_CACHES = ROOT / "tests" / "data" / "caches" / "format3"
SOURCES = {
    "model": ["samples/scene3.png", "samples/scene4.png", "samples/scene6.png"],
    "int8": ["samples/scene3.png"],
}
OPTIONS = {"model": [], "int8": ["--store", "int8"]}


@pytest.fixture(params=SOURCES)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an old cache, in the folder from which it was made."""
    monkeypatch.chdir(ROOT)
    return Path(shutil.copytree(OLD_CACHES / request.param, tmp_path / request.param))


def test_an_old_cache_is_listed(run: Run, cache: Path) -> None:
    sources = SOURCES[cache.name]
    assert run("cache", "ls", cache).out == "".join(f"16/576\t336x336\t{source}\n" for source in sources)
    facts = run("cache", "info", cache, "--json").records[0]
    is_complete = cache.name == "int8"
    counts = {"items": len(sources), "failed": 0 if is_complete else 1, "stale": 0, "shards": 1}
    counts |= {"tokens": 576 * len(sources), "kept": 16 * len(sources), "store": cache.name, "method": "prunesid"}
    assert {name: facts[name] for name in counts} == counts
    failures = run("cache", "ls", cache, "--failed").out
    assert failures == ("" if is_complete else "samples/missing.png\tno such file or folder\n")
    assert read_header(cache / "prunesid-00000.safetensors").tool == "0.1.0"


def test_an_old_cache_is_verified(run: Run, cache: Path) -> None:
    count = len(SOURCES[cache.name])
    assert run("cache", "verify", cache).out == f"{count} item{'s' * (count > 1)} good, 0 faults\n"


def test_an_old_cache_gives_the_answers_of_then(run: Run, cache: Path) -> None:
    answers = [json.loads(line) for line in (OLD_CACHES / "answers.jsonl").read_text().splitlines()]
    expected = [answer for answer in answers if answer.pop("cache") == cache.name]
    result = run("answer", cache, "--prompts", OLD_CACHES / "prompts.jsonl", "--json")
    assert result.code == 0, result.err
    assert [{name: record[name] for name in expected[0]} for record in result.records] == expected


def test_compressing_the_same_pictures_again_leaves_an_old_cache_as_it_is(run: Run, cache: Path) -> None:
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    options = ["-m", "demo", "--keep", "16", *OPTIONS[cache.name], "--out", cache]
    for _ in range(2):
        result = run("compress", *SOURCES[cache.name], *options)
        assert result.code == 0, result.err
        after = {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(".")}
        assert after == before


def test_an_old_cache_is_merged_and_continued(run: Run, cache: Path, tmp_path: Path) -> None:
    assert run("cache", "merge", cache, "--out", tmp_path / "merged").code == 0
    old, merged = open_cache(cache), open_cache(tmp_path / "merged")
    assert [item for _, item in merged.items()] == [item for _, item in old.items()]
    options = ["-m", "demo", "--keep", "16", *OPTIONS[cache.name], "--out", cache]
    result = run("compress", *SOURCES[cache.name], "samples/not_a_scene.png", *options)
    assert result.code == 0, result.err
    count = len(SOURCES[cache.name]) + 1
    assert run("cache", "verify", cache).out == f"{count} items good, 0 faults\n"
