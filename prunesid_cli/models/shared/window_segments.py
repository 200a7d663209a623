"""Large rasters of visual tokens as several segments, for families whose rasters can be of any size."""

from __future__ import annotations

import torch
from torch import Tensor

from prunesid_cli.models.shared.token_grid import window_slices
from prunesid_cli.types import Region, Segment


def window_segments(
    region: Region, side: int, features: Tensor, saliency: Tensor, extra: Tensor | None = None
) -> list[Segment]:
    """Cut a raster into windows, a segment each.

    Args:
        region: The raster, of N tokens.
        side: A window has at most side x side tokens.
        features: Tokens in raster order [N, C].
        saliency: Saliency of the tokens [N].
        extra: What else the tokens carry [N, E]; None if nothing.
    """
    slots = torch.tensor(region.slots)

    def cut(rows: Tensor, window: tuple[slice, slice]) -> Tensor:
        return rows.unflatten(0, (region.rows, region.columns))[window].flatten(0, 1)

    return [
        Segment(
            features=cut(features, window),
            saliency=cut(saliency, window),
            extra=None if extra is None else cut(extra, window),
            slots=tuple(cut(slots, window).tolist()),
        )
        for window in window_slices(region.rows, region.columns, side)
    ]
