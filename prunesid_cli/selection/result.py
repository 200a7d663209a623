"""What a selection method keeps of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The tokens that are kept of an image, and the tokens that are merged into them.

    Attributes:
        indices: [T] int64, the tokens that are kept, each once. They also give the positions of the kept rows.
        into: [N] int64, the row among the T that each token is part of; a row is the average of its parts. None: the
            rows are the kept tokens, unchanged.
    """

    indices: Tensor
    into: Tensor | None = None

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the kept rows [T, C] of tokens [N, C]. A token that is not merged keeps its exact values."""
        if self.into is None:
            return tokens[self.indices]
        parts = (self.into == torch.arange(len(self.indices), device=tokens.device)[:, None]).float()
        return (parts @ tokens.float() / parts.sum(-1, keepdim=True)).to(tokens.dtype)

    def to(self, device: torch.device) -> Selection:
        """Move the tensors to a device."""
        return Selection(self.indices.to(device), None if self.into is None else self.into.to(device))
