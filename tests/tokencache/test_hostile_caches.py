"""Caches from strangers: whatever their files hold, commands end with a clean message and touch nothing outside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from prunesid_cli import __version__
from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import read_calibration, read_header
from prunesid_cli.tokencache.failures import read_failures
from prunesid_cli.tokencache.format import CALIBRATION, FAILURES, INDEX, MEASUREMENT_LOG, canonical_json, checksum
from prunesid_cli.tokencache.index_file import read_index
from tests.caches import edit_header, make_entry, write_shard
from tests.conftest import PROMPT, CommandResult, Run, isolate, run_command

SHARD = "prunesid-00000.safetensors"
LOG, ROWS = ".prunesid-00000.log", ".prunesid-00000.rows"
CACHE_FILES = (
    SHARD, INDEX, FAILURES, CALIBRATION, MEASUREMENT_LOG, ".prunesid-stamps", ".prunesid.lock", ".prunesid-portion",
    LOG, ROWS,
)  # fmt: skip
WRONG_VALUES = (
    None, True, -1, 0, 30_000_000, 1 << 70, 1.5, float("nan"), float("inf"), "x", "\ud800", "\0", "../../x", [], {},
    [[[]]], [-1], [30_000_000],
)  # fmt: skip
SECRET = b"a file outside of the cache\n"
TERABYTE = 1 << 40


@pytest.fixture(scope="module")
def sound_cache(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> Path:
    """A cache of two pictures and a failure, with all files that a cache can have, working files included."""
    folder = tmp_path_factory.mktemp("sound")
    cache = folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder / "config")
        bad = folder / "bad.png"
        bad.write_bytes(b"no picture")
        assert run_command("compress", *pictures[:2], bad, "--out", cache, "-m", "demo", "-q").code == 3
        assert run_command("compress", *pictures[:2], "--calibrate", "--out", cache, "-m", "demo", "-q").code == 0
        (cache / ".prunesid-portion").write_text("1/2")
        (cache / MEASUREMENT_LOG).write_bytes(bytes(64))
    return cache


@pytest.fixture
def cache(sound_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_cache, tmp_path / "cache"))


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file outside of the cache, which must stay as it is."""
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    yield path
    assert path.read_bytes() == SECRET
    assert os.listdir(path.parent) == [path.name]


def read_commands(cache: Path) -> list[tuple[object, ...]]:
    """The commands that read a cache."""
    return [
        ("cache", "ls", cache, "--json"),
        ("cache", "ls", cache, "--failed"),
        ("cache", "info", cache),
        ("cache", "verify", cache),
        ("cache", "gc", cache, "--dry-run"),
        ("cache", "merge", cache, "--out", cache.parent / "merged"),
    ]


def all_commands(cache: Path, picture: Path) -> list[tuple[object, ...]]:
    """The commands that read a cache, and then those that write to it."""
    return [
        *read_commands(cache),
        ("answer", cache, PROMPT, "--max-new-tokens", 2, "-q"),
        ("ask", picture, PROMPT, "--calibration", cache, "-m", "demo", "--max-new-tokens", 2, "-q"),
        ("compress", picture, "--out", cache, "-m", "demo", "-q"),
        ("compress", picture, picture.with_name("scene3.png"), "--dynamic", "--out", cache, "-m", "demo", "-q"),
        ("compress", "--retry-failed", ".", "--out", cache, "-m", "demo", "-q"),
        ("cache", "gc", cache, "--force"),
    ]


def assert_clean(result: CommandResult, what: object) -> None:
    assert result.code in (0, 1, 2, 3), what
    assert "this is a bug" not in result.err, (what, result.err)
    assert "Traceback" not in result.err, (what, result.err)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values in JSON; of a list, to those of its first two elements."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for number in range(min(2, len(value))):
            yield from places(value[number], (*path, number))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for step in path[:-1]:
        value = value[step]
    value[path[-1]] = new


def remove(value: Any, path: tuple[Any, ...]) -> None:
    for step in path[:-1]:
        value = value[step]
    del value[path[-1]]


def read_body(path: Path) -> dict[str, Any]:
    bodies = list[dict[str, Any]]()
    before = path.read_bytes()
    edit_header(path, lambda body: bodies.append(json.loads(json.dumps(body))))
    path.write_bytes(before)
    return bodies[0]


READERS = {
    SHARD: lambda cache: read_header(cache / SHARD),
    INDEX: read_index,
    FAILURES: read_failures,
    CALIBRATION: read_calibration,
}


def is_refused(path: Path) -> bool:
    """Whether the reader of a file refuses it with a clean error; of an index, whether it is not used."""
    try:
        return READERS[path.name](path.parent) is None
    except CacheError as error:
        assert error.hint
        return True


@pytest.mark.parametrize("name", [pytest.param(SHARD, marks=pytest.mark.slow), INDEX])
def test_wrong_values_with_right_checksums(name: str, cache: Path, run: Run) -> None:
    """Each value of a header is replaced by values of other types and sizes, or left out.

    What a reader refuses, commands refuse with its error. What it takes, none of them stumbles over.
    """
    path, commands = cache / name, cycle(read_commands(cache))
    num_refused = 0
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    for place in places(read_body(path)):
        for wrong in (*WRONG_VALUES, remove):
            for file, data in before.items():
                (cache / file).write_bytes(data)
            if wrong is remove:
                edit_header(path, lambda body, place=place: remove(body, place))
            else:
                edit_header(path, lambda body, place=place, wrong=wrong: put(body, place, wrong))
            if is_refused(path):
                num_refused += 1
                continue
            command = next(commands)
            assert_clean(run(*command), (place, wrong, command[:2]))
    assert num_refused > 300


def test_wrong_values_in_text_files(cache: Path, run: Run) -> None:
    commands = cycle(read_commands(cache))
    for name in (FAILURES, CALIBRATION):
        path = cache / name
        before = path.read_bytes()
        record = json.loads(before)
        for place in places(record):
            for wrong in WRONG_VALUES:
                changed = json.loads(before)
                put(changed, place, wrong)
                path.write_text(json.dumps(changed) + "\n")
                if not is_refused(path):
                    command = next(commands)
                    assert_clean(run(*command), (name, place, wrong, command[:2]))
        path.write_bytes(before)


@pytest.mark.slow
def test_wrong_lines_in_a_journal(cache: Path, run: Run, pictures: list[Path]) -> None:
    """The journal of a killed run is recovered as far as it can be right."""
    shard = read_body(cache / SHARD)
    lines = [["shard", {"run": shard["run"], "tool": shard["tool"], "number": 1, "width": 4}]]
    lines += [["layout", layout] for layout in shard["layouts"]] + [["item", item] for item in shard["items"]]
    for number, line in enumerate(lines):
        for place in places(line):
            for wrong in WRONG_VALUES[number % 4 :: 4]:
                changed = json.loads(json.dumps(lines))
                put(changed[number], place, wrong)
                texts = [canonical_json(text).encode() for text in changed]
                log = b"".join(checksum(text).encode() + b" " + text + b"\n" for text in texts)
                (cache / ".prunesid-00001.log").write_bytes(log)
                (cache / ".prunesid-00001.rows").write_bytes(bytes(64))
                assert_clean(run("cache", "gc", cache), (place, wrong))


def make_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def make_dangling_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret.with_name("not there"))


def make_link_to_zeros(path: Path, secret: Path) -> None:
    path.symlink_to("/dev/zero")


def make_hard_link(path: Path, secret: Path) -> None:
    os.link(secret, path)


def make_pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path, secret: Path) -> None:
    path.mkdir()


def make_empty(path: Path, secret: Path) -> None:
    path.touch()


def make_terabyte(path: Path, secret: Path) -> None:
    """A sparse file, which takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(TERABYTE)


def make_deep(path: Path, secret: Path) -> None:
    path.write_text("[" * 1_000_000)


REPLACEMENTS = [
    make_link, make_dangling_link, make_link_to_zeros, make_hard_link, make_pipe, make_folder, make_empty,
    make_terabyte, make_deep,
]  # fmt: skip


@pytest.mark.parametrize(
    "replace", [make_link, *(pytest.param(replace, marks=pytest.mark.slow) for replace in REPLACEMENTS[1:])]
)
def test_no_file_of_a_cache_leads_out_of_it(
    replace: Callable[[Path, Path], None],
    sound_cache: Path,
    tmp_path: Path,
    secret: Path,
    run: Run,
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in CACHE_FILES:
        cache = Path(shutil.copytree(sound_cache, tmp_path / "cache", ignore=lambda _, names, name=name: {name}))
        replace(cache / name, secret)
        for command in all_commands(cache, pictures[2]):
            assert_clean(run(*command), (name, command[:2]))
            assert secret.read_bytes() == SECRET, (name, command)
        shutil.rmtree(cache)


@pytest.mark.slow
def test_answers_from_headers_that_are_taken(cache: Path, run: Run) -> None:
    """A header whose values are of the right types, but are not those of the model, gives an answer or an error."""
    path = cache / SHARD
    before = path.read_bytes()
    for place in places(read_body(path)):
        for wrong in (*WRONG_VALUES, "<image>", "<image><image>", [1], [575], [0.0, 0.0, 0.0, 0.0]):
            path.write_bytes(before)
            (cache / INDEX).unlink(missing_ok=True)
            edit_header(path, lambda body, place=place, wrong=wrong: put(body, place, wrong))
            if not is_refused(path):
                assert_clean(run("answer", cache, PROMPT, "--max-new-tokens", 2, "-q"), (place, wrong))


def test_special_numbers_of_shards(cache: Path, run: Run) -> None:
    """A shard number of 30 million, and an index that says so, cost neither time nor memory."""
    (cache / INDEX).unlink()
    (cache / SHARD).rename(cache / "prunesid-30000000.safetensors")
    for command in read_commands(cache):
        assert_clean(run(*command), command[:2])


def test_one_bad_item_fails_alone(sound_cache: Path, cache: Path, run: Run) -> None:
    """The others are answered, and the error names the item."""
    (cache / INDEX).unlink()

    def spoil(body: dict[str, Any]) -> None:
        body["layouts"].append({**body["layouts"][0], "text": "no place for an image"})
        body["items"][0]["layout"] = 1

    edit_header(cache / SHARD, spoil)
    source = read_body(cache / SHARD)["items"][0]["source"]
    result = run("answer", cache, PROMPT, "--max-new-tokens", 2, "--json")
    assert (result.code, len([record for record in result.records if "answer" in record])) == (3, 1)
    assert f"{source}: the tokens are not those of this model" in result.err


def test_a_shard_of_another_width_is_never_continued(cache: Path, run: Run, pictures: list[Path]) -> None:
    writer_run = read_header(cache / SHARD).run
    narrow = write_shard(cache, 0, writer_run, __version__, [make_entry(0)])
    (cache / INDEX).unlink()
    before = narrow.read_bytes()
    result = run("compress", pictures[3], "--out", cache, "-m", "demo", "-q")
    assert (result.code, "channels" in result.err) == (1, True)
    assert narrow.read_bytes() == before
