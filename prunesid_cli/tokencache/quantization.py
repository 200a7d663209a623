"""How the rows of kept tokens are stored: as the model gave them, or smaller.

Whole tensors would do badly: single channels of a vision tower's tokens are a hundred times larger than the others. So
fp8 has a scale for each token, and int8 one for each 128 channels of each token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 128
"""Channels with one scale, as int8."""
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1}
"""Of one number, by safetensors' name of its dtype."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Store:
    """A way to store rows. `dtype`: of the numbers; None: the model's own. `pack`: rows [T, C] -> stored [T, C] and
    scales [T, G]; `unpack`: both -> rows, in fp32."""

    dtype: str | None
    pack: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    unpack: Callable[[Tensor, Tensor | None], Tensor]

    def scales(self, width: int) -> int:
        """How many a row of so many channels has."""
        return 0 if self.dtype is None else 1 if self.dtype == "F8_E4M3" else -(-width // GROUP)


def _as_it_is(rows: Tensor) -> tuple[Tensor, None]:
    return rows, None


def _first(rows: Tensor, scales: Tensor | None) -> Tensor:
    return rows


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    values = rows.float()
    scales = _scale(values.abs().amax(1, keepdim=True), torch.finfo(torch.float8_e4m3fn).max)
    return (values / scales).to(torch.float8_e4m3fn), scales


def _from_fp8(rows: Tensor, scales: Tensor | None) -> Tensor:
    assert scales is not None
    return rows.float() * scales


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    grouped = _grouped(rows.float())
    scales = _scale(grouped.abs().amax(2), 127)
    whole = (grouped / scales[..., None]).round().to(torch.int8)
    return whole.flatten(1)[:, : rows.shape[1]], scales


def _from_int8(rows: Tensor, scales: Tensor | None) -> Tensor:
    assert scales is not None
    return (_grouped(rows.float()) * scales[..., None]).flatten(1)[:, : rows.shape[1]]


def _grouped(rows: Tensor) -> Tensor:
    """[T, C] -> [T, G, 128], zeros at the end."""
    import torch

    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP))
    return padded.unflatten(1, (-1, GROUP))


def _scale(largest: Tensor, limit: float) -> Tensor:
    """What makes the largest value `limit`; 1 where all are zero."""
    scales = largest / limit
    return scales.masked_fill(scales == 0, 1.0)


STORES = {
    "model": Store(None, _as_it_is, _first),
    "fp8": Store("F8_E4M3", _to_fp8, _from_fp8),
    "int8": Store("I8", _to_int8, _from_int8),
}


def dtype_of(store: str, dtype: str) -> str:
    """Of stored numbers, as safetensors calls it; `dtype`: the model's, as torch calls it."""
    return STORES[store].dtype or DTYPES[dtype]


def bytes_of(rows: Tensor) -> bytes:
    import torch

    raw: bytes = rows.contiguous().view(torch.uint8).numpy().tobytes()
    return raw
