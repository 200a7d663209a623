"""Rows that are stored as fp8 or int8 are close to those of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunesid_cli.tokencache import open_cache, read_tokens
from tests.caches import RUN, make_wide_entry, write_cache


@pytest.mark.parametrize(("store", "max_error"), [("model", 0.0), ("fp8", 0.04), ("int8", 0.03)])
@pytest.mark.parametrize("channels", [96, 128, 200])
def test_quantised_rows_are_close(tmp_path: Path, store: str, max_error: float, channels: int) -> None:
    """Also if some channels are fifty times larger than the others."""
    entry = make_wide_entry("x.png", channels=channels)
    tokens = entry.tokens.tokens.clone()
    tokens[3] = 0
    entry = replace(entry, tokens=replace(entry.tokens, tokens=tokens))
    write_cache(tmp_path, [entry], run=replace(RUN, store=store))
    ((shard, item),) = open_cache(tmp_path).items()
    (stored,) = read_tokens(shard, [item])
    error = (stored.tokens - tokens).norm(dim=1) / tokens.norm(dim=1).clamp(min=1e-9)
    assert error.max() <= max_error
    assert torch.equal(stored.tokens[3], tokens[3])
