"""compress --shard: several machines share one folder, and their caches are merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunesid_cli.inputs.sharding import Partition, parse_partition
from prunesid_cli.tokencache import open_cache
from tests.caches import items_by_source
from tests.cli.helpers import cache_files
from tests.conftest import Run


def test_machines_share_a_folder(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    bad = [folder / f"bad{number}.png" for number in range(40)]  # enough that each machine gets some
    for path in bad:
        path.write_bytes(b"no picture")
    parts, failed = list[str](), list[str]()
    for number in (1, 2, 3):
        out = tmp_path / f"c{number}"
        result = run("compress", folder, "--out", out, "-m", llava, "--shard", f"{number}/3")
        assert f"partition {number}/3" in result.err
        parts += items_by_source(out)
        failed += [record["source"] for record in open_cache(out).failures()]
    assert sorted(parts) == sorted(str(path) for path in folder.glob("scene*.png"))
    assert sorted(failed) == sorted(map(str, bad))


def test_a_partition_may_be_empty(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    """Merged, the caches of all partitions have the bytes of one run."""
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()
    parts = [tmp_path / f"{number}" for number in range(1, 9)]
    for number, out in enumerate(parts, 1):
        result = run("compress", folder, "--out", out, "-m", llava, "--shard", f"{number}/8")
        assert (result.code, "warning" in result.err) == (0, False)
        assert run("cache", "ls", out).code == run("cache", "info", out).code == run("cache", "verify", out).code == 0
    empty = [out for out in parts if not items_by_source(out)]
    assert len(empty) >= 6
    assert f"{empty[0]} is empty" in run("cache", "ls", empty[0]).err
    assert run("cache", "info", empty[0], "--json").records[0]["items"] == 0
    result = run("cache", "merge", *parts, "--out", tmp_path / "all")
    assert (result.code, "merged 2 items of 8 caches" in result.err) == (0, True)
    run("compress", folder, "--out", tmp_path / "whole", "-m", llava)
    for path in (tmp_path / "whole").glob("prunesid-*"):
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


def test_merge_warns_of_missing_and_repeated_partitions(
    run: Run, llava: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative names: an absolute one, with the number of the temporary folder, could leave a partition empty."""
    monkeypatch.chdir(folder.parent)
    parts = [tmp_path / f"{number}" for number in range(1, 4)]
    command = ("compress", folder.name, "-m", llava, "--out")
    for number, out in enumerate(parts, 1):
        assert run(*command, out, "--shard", f"{number}/3").code == 0
    warnings = run("cache", "merge", parts[0], parts[0], parts[2], "--out", tmp_path / "some").err
    assert "warning: not among these caches: partition 2/3\n" in warnings
    assert "warning: more than once among these caches: partition 1/3\n" in warnings
    assert "warning" not in run("cache", "merge", *parts, "--out", tmp_path / "all").err
    before = cache_files(parts[0])
    for other in ("2/3", "1/4"):
        result = run(*command, parts[0], "--shard", other)
        assert (result.code, f"{parts[0]} holds partition 1/3, not {other}" in result.err) == (2, True)
    assert cache_files(parts[0]) == before
    assert run(*command, parts[0], "--shard", "1/3").code == 0
    assert run(*command, parts[0]).code == 0, "the cache now holds all partitions"
    assert "warning" not in run("cache", "merge", parts[0], "--out", tmp_path / "one").err
    run(*command, tmp_path / "whole")
    for name in ("some", "all", "one"):
        assert (items_by_source(tmp_path / name).keys() == items_by_source(tmp_path / "whole").keys()) == (
            name != "some"
        )
    assert cache_files(tmp_path / "all") == cache_files(tmp_path / "whole")


FIRST_OF_FOUR = [3, 4, 7, 9]
"""Which of the first twelve names belong to partition 1/4, in all versions."""


def test_a_partition_depends_on_file_names_only() -> None:
    names = [f"photos/{i}.jpg" for i in range(1000)]
    for number in (1, 2, 3, 4):
        assert 200 < sum(Partition(number, 4).takes(name) for name in names) < 300
    first = [i for i, name in enumerate(names[:12]) if Partition(1, 4).takes(name)]
    assert first == FIRST_OF_FOUR, "machines with different versions would overlap"


SLURM = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "8"}


def test_shard_auto_reads_the_environment_of_an_array_job(
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
    assert "partition 3/4, by SLURM_ARRAY_TASK_ID 6" in run(*command, "auto").err
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    uneven = run(*command, "auto")
    assert (uneven.code, "not evenly numbered" in uneven.err) == (2, True)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    for text in ("auto", "0/3", "4/3", "1", "1/0", "a/b"):
        result = run(*command, text)
        assert (result.code, "hint: with four machines: --shard 1/4" in result.err) == (2, True), text
