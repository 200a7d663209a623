"""How large rasters fall into segments."""

from __future__ import annotations

import pytest
import torch

from prunesid_cli.models.shared.token_grid import window_slices

SHAPES = [(1, 1), (27, 27), (32, 32), (33, 32), (81, 20), (7, 146), (146, 7), (1, 5000), (128, 130)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("side", [27, 32])
def test_windows_cover_a_raster_once(rows: int, columns: int, side: int) -> None:
    seen, sizes = torch.zeros(rows, columns), []
    for window in window_slices(rows, columns, side):
        seen[window] += 1
        sizes.append(seen[window].numel())
    assert torch.equal(seen, torch.ones(rows, columns))
    assert max(sizes) <= side * side
    assert len(sizes) <= 2 * -(-rows * columns // (side * side))
    assert len(sizes) == 1 or min(sizes) > side * side / 5
