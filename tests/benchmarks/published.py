"""The published code, from a checkout of it, as a function of the same tensors as our selection.

No code is copied: the module is imported from the checkout, and its forward pass is called with a stand-in for the
vision tower that returns given features and attention.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

MODULE = Path("prunesid/prunesid_llava/clip_encoder.py")


def load_published(checkout: Path) -> Callable[[Tensor, Tensor, int], Tensor]:
    """A function from features [B, N, C], saliency [B, N] and the budget with CLS to kept indices [B, budget - 1]."""
    module = _import(checkout / MODULE)
    forward = module.CLIPVisionTower_PruneSID.forward

    def select(features: Tensor, saliency: Tensor, budget_with_cls: int) -> Tensor:
        # One head, whose CLS row is the saliency: the sum over heads is taken inside.
        attention = torch.zeros(len(features), 1, 1, features.shape[1] + 1, device=features.device)
        attention[:, 0, 0, 1:] = saliency
        states = torch.cat([torch.zeros_like(features[:, :1]), features], 1)
        seen = SimpleNamespace(attentions=[attention, attention], hidden_states=[states, states])
        tower = SimpleNamespace(
            vision_tower=lambda images, **_: seen,
            need_token_num=budget_with_cls,
            device=features.device,
            dtype=features.dtype,
        )
        kept: Tensor = forward(tower, features)[1]
        return kept[:, 1:] - 1

    return select


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise SystemExit(f"no {MODULE} in this checkout of the published code: {path}")
    spec = importlib.util.spec_from_file_location("published_clip_encoder", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
