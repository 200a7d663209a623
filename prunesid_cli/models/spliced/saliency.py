"""Saliency of visual tokens in any tower: what its own attention says of the patches that a token is made of.

Gradients show which patches a token is made of, so pixel shuffle, pooling, mergers and packing need no code of their
own. A random vector is sent back from the tokens to the tower's last states, then the same vector with a
factor for each token. If a patch goes to one token only, its two gradients differ by exactly this factor. Factors are
powers of two, which are exact in every precision, so a token's number is read digit by digit.

If the attention cannot be read, or if tokens are mixed from all patches, the saliency is the norm of a token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunesid_cli.models.shared.registered_attention import AttentionCall, record_attention

logger = logging.getLogger(__name__)

DIGIT_BITS = 3
"""Bits of a token's number that one gradient tells: factors from 2^-4 to 2^3, which fp16 holds as well."""
MAX_MAPS = 256
"""Number of maps that are remembered; one of 16,000 patches takes 128 kB."""


@dataclass(frozen=True)
class PatchMap:
    """Which patches each token of an item is made of.

    Attributes:
        num_patches: Number of the item's rows in the tower's last states, CLS tokens and padding included.
        patches: [T, m], numbers of patches; `num_patches` stands for none.
    """

    num_patches: int
    patches: Tensor


@dataclass
class Pass:
    """What is recorded while a batch goes through the tower.

    Attributes:
        states: Block -> its output in that pass; with gradients if maps are wanted.
        calls: Calls of attention modules.
    """

    states: dict[nn.Module, Tensor] = field(default_factory=dict)
    calls: list[AttentionCall] = field(default_factory=list)


class TowerSaliency:
    """Saliency of the tokens of one vision half.

    Args:
        model: The stock model that holds the tower, without its language model's layers.
        language_model: Its language model, whose modules are left out.

    Attributes:
        norm_reason: Why the saliency is the norm of a token; empty if it is attention. Known after `probe`.
    """

    def __init__(self, model: nn.Module, language_model: nn.Module) -> None:
        inside = set(language_model.modules())
        self.names = {module: name for name, module in model.named_modules() if module not in inside}
        self.maps: dict[Hashable, PatchMap] = {}
        self.is_probed = False
        self.norm_reason = ""
        self.reads_first = False
        self.attention: nn.Module | None = None
        self.block: nn.Module | None = None

    def probe(self, run: Callable[[], Tensor]) -> None:
        """Find the attention that is read. It is that of the last layer that sees whole images.

        Args:
            run: Runs the tower on one item that is larger than any window of attention, and returns its tokens [T, D].
        """
        with_config = [module for module in self.names if hasattr(module, "config") and not list_configs(module)]
        numbered = [module for module, name in self.names.items() if name.rpartition(".")[2].isdigit()]
        blocks = [block for block in numbered if list_configs(block)]
        with self._watch(blocks, with_config, wants_maps=True) as recorded:
            tokens = run()
        self.is_probed = True
        try:
            self.block, self.attention = self._find_source(recorded, tokens)
        except UnreadableTower as error:
            self.norm_reason = str(error)
            logger.debug("saliency is the norm of a token: %s", self.norm_reason)

    def _find_source(self, recorded: Pass, tokens: Tensor) -> tuple[nn.Module, nn.Module]:
        calls: dict[nn.Module, list[AttentionCall]] = {}
        for call in recorded.calls:
            calls.setdefault(call.module, []).append(call)
        holders = {module: block for module in calls if (block := self._block_of(module, recorded.states))}
        order = [block for block in recorded.states if block in holders.values()]
        if not order or not tokens.requires_grad:
            raise UnreadableTower("the tower's attention cannot be read")
        states = [recorded.states[block] for block in order]
        gradients = torch.autograd.grad(tokens, states, random_signs(tokens), retain_graph=True, allow_unused=True)
        read = [
            block for block, gradient in zip(order, gradients, strict=True) if gradient is not None and gradient.any()
        ]
        if not read:
            raise UnreadableTower("tokens are not made of the outputs of the tower's layers")
        last = read[-1]
        owner = find_owner(tokens, recorded.states[last])
        used = (owner >= 0).nonzero().flatten()
        widths = {
            module: max(call.key.shape[2] for call in calls[module])
            for module, block in holders.items()
            if order.index(block) <= order.index(last)
            and sum(call.query.shape[0] * call.query.shape[2] for call in calls[module]) == len(owner)
        }
        if not widths:
            raise UnreadableTower("the tower's attention is over other patches than its tokens are made of")
        widest = max(widths, key=lambda module: (widths[module], order.index(holders[module])))
        # The first row is CLS if it goes into no token, and the second row does.
        self.reads_first = bool(owner[0] < 0) and int(used[0]) == 1
        return last, widest

    def _block_of(self, module: nn.Module, states: dict[nn.Module, Tensor]) -> nn.Module | None:
        """The innermost block that holds a module."""
        name = self.names[module]
        holders = [block for block in states if name.startswith(f"{self.names[block]}.")]
        return max(holders, key=lambda block: len(self.names[block]), default=None)

    @contextmanager
    def watch(self, keys: Sequence[Hashable]) -> Iterator[Pass]:
        """Record what `saliency` needs while a batch goes through the tower.

        Args:
            keys: For each item what its map depends on, such as its grid.
        """
        if self.block is None or self.attention is None:
            yield Pass()
            return
        wants_maps = any(key not in self.maps for key in keys)
        with self._watch([self.block], [self.attention], wants_maps) as recorded:
            yield recorded

    @contextmanager
    def _watch(self, blocks: Sequence[nn.Module], attentions: Sequence[nn.Module], wants_maps: bool) -> Iterator[Pass]:
        recorded = Pass()

        def keep(block: nn.Module, args: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            if not torch.is_tensor(state) or not state.is_floating_point():
                return None
            recorded.states[block] = state.detach().requires_grad_(wants_maps)
            if not wants_maps:
                return None
            torch.set_grad_enabled(True)
            # A copy, which later layers may change in place.
            state = recorded.states[block].clone()
            return (state, *output[1:]) if isinstance(output, tuple) else state

        hooks = [block.register_forward_hook(keep, prepend=True) for block in blocks]
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()), record_attention(attentions) as calls:
                recorded.calls = calls
                yield recorded
        finally:
            for hook in hooks:
                hook.remove()

    def saliency(
        self,
        recorded: Pass,
        tokens: Tensor,
        keys: Sequence[Hashable],
        counts: Sequence[int],
        pixel_rows: Sequence[int],
    ) -> Tensor:
        """Saliency of the tokens of a batch.

        Args:
            recorded: Result of `watch`.
            tokens: Tokens of all items [T, D].
            keys: For each item what its map depends on.
            counts: Number of tokens of each item.
            pixel_rows: Number of rows of each item's pixels.

        Returns:
            [T], fp32.

        Raises:
            UnreadableTower: Patches of a batch cannot be told apart, or tokens are mixed of them, unlike in the probe.
        """
        if self.block is None:
            return tokens.detach().float().norm(dim=-1)
        state = recorded.states[self.block]
        if state.requires_grad:
            owner = find_owner(tokens, state)
            starts, first = patch_starts(owner, state.shape[:-1], counts, pixel_rows), 0
            for number, (key, count) in enumerate(zip(keys, counts, strict=True)):
                self.maps[key] = make_map(owner[starts[number] : starts[number + 1]] - first, count, tokens.device)
                first += count
            while len(self.maps) > max(MAX_MAPS, len(keys)):
                self.maps.pop(next(iter(self.maps)))
        rows = [call.of_first() if self.reads_first else call.received() for call in recorded.calls]
        maps = [self.maps[key] for key in keys]
        parts = torch.cat([row.flatten() for row in rows]).split([item.num_patches for item in maps])
        sums = []
        for part, item in zip(parts, maps, strict=True):
            sums.append(torch.cat([part, part.new_zeros(1)])[item.patches].sum(-1))
        return torch.cat(sums)


class UnreadableTower(Exception):
    """The attention of a tower cannot be read, or not carried to tokens."""


def list_configs(module: nn.Module) -> list[nn.Module]:
    """The modules inside of a module that have a configuration."""
    return [child for child in module.modules() if child is not module and hasattr(child, "config")]


def random_signs(tokens: Tensor) -> Tensor:
    """Numbers 1 and -1 for all channels of all tokens, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, tokens.shape, generator=generator) * 2 - 1
    return signs.to(tokens.device, tokens.dtype)


def find_owner(tokens: Tensor, state: Tensor) -> Tensor:
    """Find the token that each patch goes into.

    Args:
        tokens: [T, D], computed from `state`.
        state: Patches [..., C], a leaf with gradients.

    Returns:
        [P], on the CPU: the number of a token; -1 for a patch that goes into no token, such as CLS or padding.

    Raises:
        UnreadableTower: Tokens are mixed of patches that go to other tokens as well.
    """
    vector = random_signs(tokens)
    send_back = partial(torch.autograd.grad, tokens, state, retain_graph=True)
    base = send_back(vector)[0].flatten(0, -2).float().abs()
    largest = base.amax(-1, keepdim=True)
    is_read = largest[:, 0] > 0
    is_clear = base > 1e-2 * largest
    numbers = torch.arange(len(tokens), device=tokens.device)
    owner, steps = torch.zeros_like(is_read, dtype=torch.long), 1 << DIGIT_BITS
    is_alone = torch.ones_like(is_read)
    shift = 0
    while len(tokens) >> shift:
        exponents = (numbers >> shift) % steps - steps // 2
        (gradient,) = send_back(vector * torch.exp2(exponents.float()).to(tokens)[:, None])
        ratio = gradient.flatten(0, -2).float().abs() / base
        ratio = ratio.log2().masked_fill(~is_clear, torch.nan)
        digit = ratio.nanmedian(-1).values
        is_alone &= ((ratio - digit[:, None]).abs().nan_to_num(0) < 0.25).all(-1) | ~is_read
        owner += (digit.round().nan_to_num(0).long() + steps // 2) << shift
        shift += DIGIT_BITS
    if not (is_alone & (owner >= 0) & (owner < len(tokens)))[is_read].all():
        raise UnreadableTower("tokens are mixed of patches")
    return owner.masked_fill(~is_read, -1).cpu()


def patch_starts(owner: Tensor, shape: torch.Size, counts: Sequence[int], pixel_rows: Sequence[int]) -> list[int]:
    """Where the patches of each item start, in the tower's states of a batch.

    Args:
        owner: Token of each patch [P].
        shape: Shape of the states without channels: images and patches, or patches.
        counts: Number of tokens of each item.
        pixel_rows: Number of rows of each item's pixels, which are images or patches.

    Returns:
        One number more than there are items; the last is P.
    """
    total = sum(pixel_rows)
    if total and len(owner) % total == 0 and (total in (shape[0], len(owner))):
        rows = torch.tensor([0, *pixel_rows]).cumsum(0) * (len(owner) // total)
        return [int(row) for row in rows]
    if (owner < 0).any():
        raise UnreadableTower("patches of a batch cannot be told apart")
    ends = torch.tensor(counts).cumsum(0)
    return [0, *(int((owner < end).sum()) for end in ends)]


def make_map(owner: Tensor, count: int, device: torch.device) -> PatchMap:
    """Turn the token of each patch [P] into the patches of each token, of `count` tokens, on a device."""
    sizes = torch.bincount(owner[owner >= 0], minlength=count)
    patches = torch.full((count, int(sizes.max())), len(owner))
    by_token = owner.argsort(stable=True)[int((owner < 0).sum()) :]
    tokens = owner[by_token]
    places = torch.arange(len(by_token)) - (sizes.cumsum(0) - sizes)[tokens]
    patches[tokens, places] = by_token
    return PatchMap(len(owner), patches.to(device))
