"""What a method keeps of an image: which tokens, and what else goes into each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """`indices` [T] int64: the tokens that are kept, each once, and where all that is kept stands.

    into [N] int64: which of the T rows each token is part of; a row is the average of its parts. None: rows are the
    kept tokens as they are.
    """

    indices: Tensor
    into: Tensor | None = None

    def rows(self, tokens: Tensor) -> Tensor:
        """tokens [N, C] -> [T, C]. What is kept as it is stays so to the bit."""
        if self.into is None:
            return tokens[self.indices]
        parts = (self.into == torch.arange(len(self.indices), device=tokens.device)[:, None]).float()
        return (parts @ tokens.float() / parts.sum(-1, keepdim=True)).to(tokens.dtype)

    def to(self, device: torch.device) -> Selection:
        return Selection(self.indices.to(device), None if self.into is None else self.into.to(device))
