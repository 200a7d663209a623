"""Encoding and selection joined: what to keep of each item, and the token sets that come of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from prunesid_cli.errors import MediaError, NonFiniteError, UsageError
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_SAMPLING, FrameSampling
from prunesid_cli.models.base import VisionHalf
from prunesid_cli.models.shared.processor import supports_clips, fixed_short_side
from prunesid_cli.pipeline.frame_windows import check_window, join_windows
from prunesid_cli.pipeline.segments import PARTS, Information, alike, assemble_token_set, item_information, stacked
from prunesid_cli.runtime.stopwatch import Stopwatch
from prunesid_cli.selection import select_batch
from prunesid_cli.selection.budget import Budget, Spread, limits, reference, single, spread
from prunesid_cli.selection.methods.prunesid import over_time
from prunesid_cli.selection.result import Selection
from prunesid_cli.selection.similarity import phi
from prunesid_cli.selection.validation import check_finite
from prunesid_cli.types import Encoded, Pixels, Segment, TokenSet

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.selection import Method


DOWNSCALE_MARGIN = 2
"""Times the side that a model reads: what a picture is decoded at, at least, where it is decoded smaller."""
OVER_TIME: Mapping[object, Method] = {"prunesid": over_time}
"""What a method is for a window of frames, where that is another one."""


class FixedItem(NamedTuple):
    """An item of a collection that was given its tokens before: of how many, and how many."""

    total: int
    tokens: int


@dataclass(frozen=True)
class Pruner:
    """A vision half with what to keep and how to choose it; `sample` is the information of items to compare one with,
    where any are known; `sampling` says at which frames of a clip to look, and which are selected from together;
    `draft` lets large JPEGs be decoded smaller where that is enough."""

    vision: VisionHalf
    budget: Budget
    method: str | Method
    sample: Sequence[float]
    sampling: FrameSampling = DEFAULT_SAMPLING
    downscale: bool = False
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """What the tower takes of a picture or clip.

        Raises:
            MediaError: it is a clip, and the model has none: it would read one frame of it, or fall over them; or
                windows of its frames are too large.
        """
        if media.is_clip:
            self.check_clip(media.source)
        pixels = self.vision.preprocess(media, num_other_images)
        check_window(media.source, pixels.layout, self.sampling.window)
        return pixels

    def check_clip(self, source: str) -> None:
        """Refuse a clip, which may not be decoded yet, where the model has none."""
        if not supports_clips(self.vision):
            hint = "give it pictures, or name a model that does: -m qwen2.5-vl-7b (others: prunesid models)"
            raise MediaError(f"{source}: this model reads no clips", hint)

    @property
    def min_decode_side(self) -> int | None:
        """Pixels of a picture's shorter side down to which it may be decoded smaller; None: it may not."""
        side = fixed_short_side(self.vision) if self.downscale else None
        return side and DOWNSCALE_MARGIN * side

    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        with self.stopwatch.stage("encode"):
            return [join_windows(item, self.sampling.window) for item in self.vision.encode(items)]

    @property
    def spreads_across_items(self) -> bool:
        """Whether items may get more or fewer tokens than the budget, which then is an average."""
        return self.budget.spread is Spread.ACROSS_ITEMS and (self.budget.count, self.budget.share) != (None, None)

    @property
    def chosen(self) -> str | Method:
        """The method that is meant: of some names, the published code differs by model, and so does what they mean."""
        named: Mapping[object, Method] = getattr(self.vision, "methods", {})
        return named.get(self.method, self.method)

    def method_for(self, segment: Segment) -> str | Method:
        """The same, or what it is for a window of frames."""
        return OVER_TIME.get(self.chosen, self.chosen) if segment.frames > 1 else self.chosen

    def mean_tokens(self, total: int) -> int:
        """What an average item of so many tokens is given."""
        return min(self.budget.tokens(total), total)

    def phi_ref(self, total: int) -> float | None:
        """The information of an item that gets the budget itself; None where no item is known to compare with."""
        mean = self.mean_tokens(total)
        return reference(self.sample, mean, *limits(mean, total)) if self.sample else None

    def token_counts(self, values: Sequence[float], totals: Sequence[int], already: Sequence[FixedItem] = ()) -> list[int]:
        """Tokens for each of a closed collection of items, given the information and the tokens of each.

        `already`: what further items of the collection were given before, and keep.
        """
        means = [self.mean_tokens(total) for total in totals]
        if not self.spreads_across_items:
            return means
        bounds = [limits(mean, total) for mean, total in zip(means, totals, strict=True)]
        if len(values) + len(already) > 1:
            left = sum(means) + sum(self.mean_tokens(one.total) - one.tokens for one in already)
            scale = max(left, 0) / max(sum(means), 1)
            return spread(values, [scale * mean for mean in means], bounds)
        if not self.sample:
            raise UsageError(
                "--dynamic for one image needs the information of an average one, which this model does not carry",
                hint="give several images, or measure it with: prunesid compress IMAGES --calibrate --out CACHE",
            )
        return [
            single(value, self.phi_ref(total) or value, mean, *bound)
            for value, total, mean, bound in zip(values, totals, means, bounds, strict=True)
        ]

    def prune(self, items: Sequence[Encoded]) -> list[TokenSet]:
        """The kept tokens of each of a closed collection of items."""
        values = self.information(items)
        phis = [item_information(own, item) for own, item in zip(values, items, strict=True)]
        return self.keep(items, self.token_counts(phis, [item.layout.total for item in items]), values)

    def information(self, items: Sequence[Encoded]) -> list[Information]:
        """phi of each segment of each item of a batch. One host sync."""
        segments = [segment for item in items for segment in item.segments]
        groups = list(alike(segments).values())
        found = torch.cat([phi(torch.stack([segments[i].features for i in group])) for group in groups]).tolist()
        values = dict(zip([i for group in groups for i in group], found, strict=True))
        ordered = iter([values[i] for i in range(len(segments))])
        return [tuple(next(ordered) for _ in item.segments) for item in items]

    def segment_budgets(self, item: Encoded, count: int, values: Information) -> list[int]:
        """How many of its `count` tokens each segment of an item gets, its CLS included."""
        capacity = [segment.capacity for segment in item.segments]
        if count >= min(item.layout.total, sum(capacity)):
            return capacity
        means = [count * own / sum(capacity) for own in capacity]
        even = [1.0] * len(capacity)
        return spread(
            even if self.budget.spread is Spread.NONE else values,
            means,
            [limits(mean, own) for mean, own in zip(means, capacity, strict=True)],
        )

    def keep(
        self, items: Sequence[Encoded], counts: Sequence[int], values: Sequence[Information] = ()
    ) -> list[TokenSet]:
        """The kept tokens of each item of a batch; `values`: its information, where it is known already.

        Raises:
            NonFiniteError: with `rows`, the items whose features or saliency are not finite.
        """
        with self.stopwatch.stage("select"):
            values = values or self.information(items)
            bad = [row for row, own in enumerate(values) if not all(map(math.isfinite, own))]
            if bad:
                raise NonFiniteError("NaN or infinity in the information of a segment", rows=bad)
            segment_budgets = [self.segment_budgets(*one) for one in zip(items, counts, values, strict=True)]
            jobs = [
                (segment, share)
                for item, own in zip(items, segment_budgets, strict=True)
                for segment, share in zip(item.segments, own, strict=True)
            ]
            owners = [row for row, item in enumerate(items) for _ in item.segments]
            try:
                chosen = iter(self._choose(jobs))
            except NonFiniteError as error:
                raise NonFiniteError(error.problem, error.hint, sorted({owners[i] for i in error.rows})) from error
            return [
                assemble_token_set(item, [next(chosen) for _ in item.segments], own, count >= item.layout.total)
                for item, own, count in zip(items, segment_budgets, counts, strict=True)
            ]

    def _choose(self, jobs: Sequence[tuple[Segment, int]]) -> list[tuple[Selection, list[int]]]:
        """What is kept of segments, each with its share, on the device, and its places as numbers.

        Raises:
            NonFiniteError: with `rows`, the numbers of the segments.
        """
        found: dict[int, Selection] = {}
        for group in alike([segment for segment, _ in jobs]).values():
            some = [jobs[i][0] for i in group]
            num_cls = int(some[0].cls is not None)
            features = torch.stack([one.features for one in some])
            saliency, *others = (stacked([getattr(one, name) for one in some]) for name in PARTS)
            try:
                check_finite(features, saliency, *others)
            except NonFiniteError as error:
                raise NonFiniteError(error.problem, error.hint, [group[row] for row in error.rows]) from error
            budgets = [jobs[i][1] for i in group]
            kept = select_batch(features, saliency, budgets, self.method_for(some[0]), num_cls)
            found |= dict(zip(group, kept, strict=True))
        ordered = [found[i] for i in range(len(jobs))]
        # All at once: the host waits for a device that it asks.
        numbers = torch.cat([one.indices for one in ordered]).cpu().split([len(one.indices) for one in ordered])
        return [(one, own.tolist()) for one, own in zip(ordered, numbers, strict=True)]
