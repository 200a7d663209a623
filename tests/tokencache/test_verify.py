"""`cache verify`: what is wrong in a cache although all checksums are right."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import open_cache, read_tokens, verify_cache
from prunesid_cli.tokencache.format import INDEX
from tests.caches import RUN, make_entries, make_entry, write_cache, write_shard


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_no_numbers_are_found(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    run = replace(RUN, dtype=str(dtype).removeprefix("torch."))
    entries = [make_entry(number, dtype=dtype) for number in range(3)]
    entries[1].tokens.tokens[2, 1] = value
    write_shard(tmp_path, 0, run, "0.0", entries)
    num_good, faults = verify_cache(tmp_path)
    assert (num_good, len(faults), "the tokens of 1.png" in faults[0].problem) == (2, 1, True)
    (shard, item) = next((shard, item) for shard, item in open_cache(tmp_path).items() if item.source == "1.png")
    with pytest.raises(CacheError, match="are damaged"):
        next(read_tokens(shard, [item]))


@pytest.mark.parametrize("num_other", [1, 2, 3, 4, 8])
def test_the_index_of_another_cache_is_found(num_other: int, tmp_path: Path) -> None:
    """Whether the other cache has fewer, as many, or more items."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    write_cache(mine, make_entries(4))
    entries = [
        replace(entry, provenance=replace(entry.provenance, source=f"other/{entry.source}"))
        for entry in make_entries(num_other)
    ]
    write_cache(other, entries)
    assert verify_cache(mine) == (4, [])
    shutil.copy(other / INDEX, mine)
    num_good, faults = verify_cache(mine)
    assert num_good == 4
    assert any("is damaged, or not of these shards" in fault.problem or "missing" in fault.problem for fault in faults)


def test_an_index_that_is_behind_its_shards_is_right(tmp_path: Path) -> None:
    """As after a crash: a shard has grown since the index was saved."""
    write_cache(tmp_path, make_entries(2))
    before = (tmp_path / INDEX).read_bytes()
    write_cache(tmp_path, make_entries(4)[2:])
    (tmp_path / INDEX).write_bytes(before)
    assert verify_cache(tmp_path) == (4, [])
