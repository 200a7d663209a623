"""Saliency of the generic adapter: the attention that a tower really pays, carried to the right tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from prunesid_cli.models.shared.registered_attention import AttentionCall
from prunesid_cli.models.spliced.halves import grid_key
from prunesid_cli.models.spliced.saliency import UnreadableTower, find_owner
from prunesid_cli.models.spliced.table import TYPES
from tests.models.harness import CLOSE, Model, variant_marks
from tests.models.tiny import tiny_model, write_checkpoint

TYPES_WITHOUT_ATTENTION = {"gemma4_unified"}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=variant_marks(name)) for name in sorted(TYPES)])
def spliced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = write_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    yield Model(folder, tiny_model(request.param))


def test_saliency_is_the_attention_of_the_patches_of_a_token(spliced: Model) -> None:
    vision = spliced.vision
    for media in spliced.media():
        item = vision.preprocess(media)
        (encoded,) = vision.encode([item])
        found = torch.full((item.layout.total,), torch.nan)
        for segment in encoded.segments:
            found[list(segment.slots)] = segment.saliency
        if spliced.stock.config.model_type in TYPES_WITHOUT_ATTENTION:
            assert vision.saliency.norm_reason
            expected = vision.features([item])[0].norm(dim=-1)
            torch.testing.assert_close(found, expected, **CLOSE)
            continue
        assert not vision.saliency.norm_reason
        key = grid_key(item)
        with vision.saliency.watch([key]) as recorded, torch.no_grad():
            vision.features([item])
        weights = torch.cat([eager_weights(call, vision.saliency.reads_first).flatten() for call in recorded.calls])
        patches = vision.saliency.maps[key].patches
        expected = torch.cat([weights, torch.zeros(1)])[patches].sum(-1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def eager_weights(call: AttentionCall, of_first: bool) -> Tensor:
    """What `AttentionCall` computes, by all weights at once: [B, N]."""
    scores = call.query @ call.key.mT * call.scale
    valid = torch.ones(len(scores), scores.shape[-1], dtype=torch.bool)
    if call.mask is not None:
        mask = call.mask if call.mask.dtype == torch.bool else call.mask == 0
        valid = mask.expand_as(scores).any(2).any(1)
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1)
    if of_first:
        return weights[:, :, 0].sum(1)
    weights = weights.nan_to_num() * valid[:, None, :, None]
    return weights.sum((1, 2)) / (valid.sum(-1, keepdim=True) * scores.shape[1])


def test_a_token_is_made_of_its_patches_alone(spliced: Model) -> None:
    """Other patches in the last states of the tower change the tokens that are made of them, and no others."""
    vision = spliced.vision
    item = vision.preprocess(spliced.images()[1])
    vision.encode([item])
    if vision.saliency.norm_reason:
        return
    patches = vision.saliency.maps[grid_key(item)]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(len(patches.patches), generator=generator) < 0.3
    changed = patches.patches[chosen].flatten()
    changed = changed[changed < patches.num_patches]

    def disturb(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        state = (output[0] if isinstance(output, tuple) else output).clone(memory_format=torch.contiguous_format)
        rows = state.view(-1, state.shape[-1])
        rows[changed] += torch.randn(len(changed), state.shape[-1], generator=generator)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    with torch.no_grad():
        before, _ = vision.features([item])
        with vision.saliency.block.register_forward_hook(disturb, prepend=True):
            after, _ = vision.features([item])
    moved = (before - after).abs().amax(-1)
    assert moved[~chosen].max() < 1e-6 < moved[chosen].min()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_patches_are_found_in_every_precision(dtype: torch.dtype) -> None:
    """3,000 tokens of four patches each, in a random order, through a projector of several layers."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(12_000, generator=generator)
    projector = torch.nn.Sequential(
        torch.nn.LayerNorm(64), torch.nn.Linear(64, 32), torch.nn.GELU(), torch.nn.Linear(32, 48)
    ).to(dtype)
    state = torch.randn(1, 12_000, 16, generator=generator).to(dtype).requires_grad_()
    tokens = projector(state[0, order].view(3_000, 64))
    expected = torch.empty(12_000, dtype=torch.long)
    expected[order] = torch.arange(12_000) // 4
    assert torch.equal(find_owner(tokens, state), expected)


def test_tokens_that_are_mixed_of_patches_are_noticed() -> None:
    state = torch.randn(1, 20, 8, requires_grad=True)
    mixed = torch.randn(5, 20).softmax(-1) @ state[0]
    with pytest.raises(UnreadableTower, match="mixed"):
        find_owner(mixed, state)
