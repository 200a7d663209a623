"""Positions of visual tokens in time, row and column (M-RoPE), as the stock model counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.errors import ModelError
from prunesid_cli.models.shared.prompt_pieces import mrope_coordinates
from prunesid_cli.types import Layout


def with_mrope(
    layout: Layout,
    token_type: int,
    token_id: int,
    get_rope_index: Callable[..., Any],
    grids: Mapping[str, Tensor],
) -> Layout:
    """Add to a layout the positions that the stock model gives the item.

    Args:
        layout: The layout, without positions.
        token_type: 1 for an image, 2 for a clip, as in `mm_token_type_ids`.
        token_id: Its placeholder.
        get_rope_index: The stock model's function that counts positions.
        grids: Arguments of the stock model for the item, among which are those of `get_rope_index`.

    Raises:
        ModelError: The stock model counts rows and columns in another way than in raster order.
    """
    # Positions of a prompt that has one word before each run, and a last one.
    token_types = torch.tensor([kind for run in layout.runs for kind in (0, *[token_type] * run)] + [0])
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    positions = get_rope_index(
        (token_types > 0).long()[None] * token_id,
        mm_token_type_ids=token_types[None],
        **{name: grids[name] for name in names if name in grids},
    )[0][:, 0]
    visual, words = positions[:, token_types > 0], positions[0, token_types == 0].tolist()
    run_of_slot = torch.tensor([number for number, run in enumerate(layout.runs) for _ in range(run)])
    starts = torch.tensor(words)[run_of_slot] + 1
    regions = tuple(replace(region, tick=int((visual[0] - starts)[region.first])) for region in layout.regions)
    deltas = tuple(after - before - 1 for before, after in zip(words, words[1:], strict=False))
    layout = replace(layout, regions=regions, mrope_deltas=deltas)
    if not torch.equal(mrope_coordinates(layout), visual - starts):
        problem = "the stock model counts the rows and columns of an image in another way than its grids say"
        raise ModelError(problem, hint="report it, with the type of the model")
    return layout
