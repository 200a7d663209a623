"""How a large token grid is cut into windows."""

from __future__ import annotations

import pytest
import torch

from prunesid_cli.models.shared.token_grid import window_slices

SHAPES = [(1, 1), (27, 27), (32, 32), (33, 32), (81, 20), (7, 146), (146, 7), (1, 5000), (128, 130)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("side", [27, 32])
def test_windows_cover_a_grid_once(rows: int, columns: int, side: int) -> None:
    covered, sizes = torch.zeros(rows, columns), []
    for window in window_slices(rows, columns, side):
        covered[window] += 1
        sizes.append(covered[window].numel())
    assert torch.equal(covered, torch.ones(rows, columns))
    assert max(sizes) <= side * side
    assert len(sizes) <= 2 * -(-rows * columns // (side * side))
    assert len(sizes) == 1 or min(sizes) > side * side / 5
