"""How the rows of kept tokens are stored: unchanged, as fp8 or as int8.

One scale for a whole tensor would be too coarse: single channels of a vision tower's tokens are a hundred times larger
than the others. So fp8 has a scale for each token, and int8 has one for each 128 channels of each token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GROUP_CHANNELS = 128
"""Channels that share a scale under int8."""
DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1}
"""safetensors' name of a dtype -> bytes of one number."""
SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""torch's name of a model's dtype -> safetensors' name."""


@dataclass(frozen=True)
class Store:
    """A way to store rows.

    Attributes:
        dtype: safetensors' name of the stored dtype; None for the dtype of the model.
        pack: Rows [T, C] -> stored rows [T, C] and scales [T, G], or None.
        unpack: Stored rows and scales -> rows [T, C] in fp32, or unchanged.
    """

    dtype: str | None
    pack: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    unpack: Callable[[Tensor, Tensor | None], Tensor]

    def scales_per_row(self, channels: int) -> int:
        """Return the number of scales G of a row."""
        if self.dtype is None:
            return 0
        return 1 if self.dtype == "F8_E4M3" else -(-channels // GROUP_CHANNELS)


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    values = rows.float()
    scales = _scales(values.abs().amax(1, keepdim=True), torch.finfo(torch.float8_e4m3fn).max)
    return (values / scales).to(torch.float8_e4m3fn), scales


def _from_fp8(rows: Tensor, scales: Tensor | None) -> Tensor:
    assert scales is not None
    return rows.float() * scales


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    grouped = _group(rows.float())
    scales = _scales(grouped.abs().amax(2), 127)
    quantized = (grouped / scales[..., None]).round().to(torch.int8)
    return quantized.flatten(1)[:, : rows.shape[1]], scales


def _from_int8(rows: Tensor, scales: Tensor | None) -> Tensor:
    assert scales is not None
    return (_group(rows.float()) * scales[..., None]).flatten(1)[:, : rows.shape[1]]


def _group(rows: Tensor) -> Tensor:
    """[T, C] -> [T, G, 128], with zeros at the end."""
    import torch

    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP_CHANNELS))
    return padded.unflatten(1, (-1, GROUP_CHANNELS))


def _scales(largest: Tensor, limit: float) -> Tensor:
    """The scales that map the largest values to `limit`; 1 where all values are zero."""
    scales = largest / limit
    return scales.masked_fill(scales == 0, 1.0)


STORES = {
    "model": Store(None, pack=lambda rows: (rows, None), unpack=lambda rows, scales: rows),
    "fp8": Store("F8_E4M3", pack=_to_fp8, unpack=_from_fp8),
    "int8": Store("I8", pack=_to_int8, unpack=_from_int8),
}


def stored_dtype(store: str, dtype: str) -> str:
    """Return safetensors' name of the dtype that rows are stored in.

    Args:
        store: A key of `STORES`.
        dtype: The dtype of the model, as torch calls it.
    """
    return STORES[store].dtype or SAFETENSORS_DTYPES[dtype]
