"""Writing a cache: shards, failures, working files, full disks and folders that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prunesid_cli.errors import CacheError, MediaError
from prunesid_cli.tokencache import CacheWriter, Entry, ShardLimits, open_cache
from prunesid_cli.tokencache.format import INDEX
from tests.caches import (
    RUN,
    items_by_source,
    make_entries,
    make_entry,
    read_files,
    with_digest,
    write_cache,
    write_shard,
)
from tests.conftest import Run as Runner


def test_shards_follow_each_other_and_the_last_item_of_a_source_counts(tmp_path: Path) -> None:
    write_cache(tmp_path, make_entries(5), shard_items=2)
    writer = CacheWriter(tmp_path, RUN, "0.0", ShardLimits(items=2))
    assert writer.find_by_digest("3.png", f"{3:064x}")
    assert writer.find_by_digest("3.png", "another") is None
    writer.add(with_digest(make_entry(3), "ab" * 32))
    writer.close()
    assert [path.name for path in sorted(tmp_path.glob("prunesid-0*"))] == [
        f"prunesid-0000{number}.safetensors" for number in range(3)
    ]
    assert sorted(items_by_source(tmp_path)) == [f"{number}.png" for number in range(5)]
    assert items_by_source(tmp_path)["3.png"].digest == "ab" * 32


def test_a_cache_that_grew_step_by_step_equals_one_written_at_once(tmp_path: Path) -> None:
    write_cache(tmp_path / "once", make_entries(7), shard_items=3)
    for step in (range(1), range(1, 4), range(4, 7)):
        write_cache(tmp_path / "steps", [make_entry(number) for number in step], shard_items=3)
    assert read_files(tmp_path / "once") == read_files(tmp_path / "steps")


def test_failures_stay_until_their_input_is_added(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, RUN, "0.0")
    for name in ("0.png", "other.png"):
        writer.fail(name, MediaError("bad", "mend it"))
    writer.close()
    assert [record["source"] for record in open_cache(tmp_path).failures()] == ["0.png", "other.png"]
    write_cache(tmp_path, [make_entry(0)])
    assert open_cache(tmp_path).failures() == [{"source": "other.png", "error": "bad", "hint": "mend it"}]


def test_a_cache_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, RUN, "0.0", [make_entry(0)])
    with pytest.raises(CacheError, match="made with method prunesid, not random"):
        CacheWriter(tmp_path, replace(RUN, method="random"), "0.0")


def test_a_cache_that_cannot_be_written_may_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cache(tmp_path, make_entries(8), shard_items=2)
    (tmp_path / INDEX).unlink()

    def refuse(path: Path, *args: object) -> None:  # what the system tells all but the superuser, who may run this
        raise PermissionError(13, "Permission denied")

    def add_missing(entries: list[Entry]) -> None:
        writer = CacheWriter(tmp_path, RUN, "0.0", ShardLimits(items=3))
        try:
            for entry in entries:
                if not writer.find_by_digest(entry.source, entry.provenance.digest):
                    writer.add(entry)
            writer.complete()
        finally:
            writer.close()

    monkeypatch.setattr(Path, "touch", refuse)
    before = sorted(tmp_path.iterdir())
    add_missing(make_entries(8))
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(CacheError, match="cannot write to .*: Permission denied"):
        add_missing(make_entries(9))
    writer = CacheWriter(tmp_path, RUN, "0.0")
    writer.fail("0.png", MediaError("bad", "mend it"))
    with pytest.raises(CacheError, match="cannot write to"):
        writer.close()
    with pytest.raises(CacheError, match="cannot write to"):
        CacheWriter(tmp_path / "new", RUN, "0.0")


def test_partial_files_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".prunesid-00000.safetensors.99.part").write_bytes(b"half")
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert [path.name for path in tmp_path.iterdir()] == [".prunesid.lock"]


def test_partial_files_of_other_programs_are_not_deleted(tmp_path: Path) -> None:
    (tmp_path / ".failures.jsonl.99.part").write_bytes(b"half")
    (tmp_path / ".film.mp4.part").write_bytes(b"half")
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".film.mp4.part", ".prunesid.lock"]


def add_on_full_disk(folder: Path, max_file_bytes: int, *token_counts: int) -> str:
    """Add items in a process that cannot write files larger than a limit; returns the error and its hint.

    The limit stands for a full disk: it gives the same short write and the same error.
    """
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from prunesid_cli.errors import CacheError; from prunesid_cli.tokencache import CacheWriter\n"
        "from tests.caches import RUN, make_entry\n"
        "folder, limit, *token_counts = Path(sys.argv[1]), *map(int, sys.argv[2:])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "writer = CacheWriter(folder, RUN, '0.0')\n"
        "try:\n    try:\n        for number, count in enumerate(token_counts, 1):\n"
        "            writer.add(make_entry(number, count))\n    finally:\n        writer.close()\n"
        "except CacheError as error:\n    print(error.problem, '|', error.hint)"
    )
    command = [sys.executable, "-c", code, folder, str(max_file_bytes), *map(str, token_counts)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


def test_a_full_disk_leaves_a_valid_cache(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, RUN, "0.0", [make_entry(0)])
    message = add_on_full_disk(tmp_path, 3000, 500)
    assert (message.count("cannot write"), "free some space" in message) == (1, True)
    assert list(items_by_source(tmp_path)) == ["0.png"]
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert list(items_by_source(tmp_path)) == ["0.png"]
    assert not [*tmp_path.glob(".*.rows"), *tmp_path.glob(".*.log")], "nothing is left of an incomplete item"


def test_items_that_a_full_disk_had_room_for_are_not_lost(tmp_path: Path) -> None:
    """The disk has room for the journal, but not for the shard that is written from it."""
    expected, full = tmp_path / "expected", tmp_path / "full"
    expected.mkdir()
    full.mkdir()
    path = write_shard(expected, 0, RUN, "0.0", [make_entry(number, 200) for number in range(1, 4)])
    assert "cannot write" in add_on_full_disk(full, path.stat().st_size - 1, 200, 200, 200)
    assert not (full / path.name).exists()
    CacheWriter(full, RUN, "0.0").close()
    assert (full / path.name).read_bytes() == path.read_bytes()
    assert list(items_by_source(full)) == ["1.png", "2.png", "3.png"]
    assert not list(full.glob(".*.rows"))


def test_an_unwritable_folder_is_found_before_the_model_is_loaded(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("compress", tmp_path, "--out", tmp_path / "file" / "cache", "-m", "demo")
    assert (result.code, "cannot write to" in result.err) == (1, True)
