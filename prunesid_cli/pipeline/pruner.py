"""The pruner: a vision tower together with how many tokens to keep and which method selects them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

import torch

from prunesid_cli.errors import MediaError, NonFiniteError, UsageError
from prunesid_cli.inputs.decoding import DEFAULT_DECODING, Decoding
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_SAMPLING, FrameSampling
from prunesid_cli.models.base import VisionHalf
from prunesid_cli.models.shared.processor import supports_clips
from prunesid_cli.pipeline.frame_windows import check_window, join_windows
from prunesid_cli.pipeline.segments import (
    OPTIONAL_TENSORS,
    Information,
    assemble_token_set,
    group_stackable,
    item_information,
)
from prunesid_cli.runtime.stopwatch import Stopwatch
from prunesid_cli.selection import select_batch
from prunesid_cli.selection.budget import (
    Budget,
    Spread,
    reference_phi,
    spread_tokens,
    token_bounds,
    tokens_against_reference,
)
from prunesid_cli.selection.methods.prunesid_over_time import prunesid_over_time
from prunesid_cli.selection.result import Selection
from prunesid_cli.selection.similarity import compute_phi
from prunesid_cli.selection.validation import check_finite
from prunesid_cli.text import calibrate_command
from prunesid_cli.types import Encoded, Pixels, Segment, TokenSet

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.selection import Method

DOWNSCALE_MARGIN = 2
"""With `downscale`, a JPEG keeps at least this multiple of the side that the model reads."""
WINDOWED_METHODS: Mapping[object, Method] = {"prunesid": prunesid_over_time}
"""Methods that have a variant for windows of several frames."""


class FixedItem(NamedTuple):
    """An item whose number of tokens was decided by an earlier run: all its visual tokens, and those kept."""

    total: int
    tokens: int


@dataclass(frozen=True)
class Pruner:
    """Encodes items and selects which of their visual tokens to keep.

    Attributes:
        vision: The vision half of the model.
        budget: How many tokens to keep.
        method: A name of `selection.METHODS`, or a function like those.
        sample: Information (phi) of typical items, to compare a single one with; empty if none is known.
        sampling: Which frames of a clip are read, and how many are pruned together.
        decoding: How strictly, and for how long, inputs are decoded.
        downscale: Whether large JPEGs may be decoded at a fraction of their size.
        stopwatch: Counts the seconds of each stage.
    """

    vision: VisionHalf
    budget: Budget
    method: str | Method
    sample: Sequence[float]
    sampling: FrameSampling = DEFAULT_SAMPLING
    decoding: Decoding = DEFAULT_DECODING
    downscale: bool = False
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Turns an image or clip into the inputs of the vision tower.

        Args:
            media: The decoded input.
            num_other_images: How many more of its kind are in the prompt. Some models then read it differently.

        Raises:
            MediaError: It is a clip and the model reads none, or a window of its frames has too many tokens.
        """
        if media.is_clip:
            self.check_clip(media.source)
        pixels = self.vision.preprocess(media, num_other_images)
        check_window(media.source, pixels.layout, self.sampling.window)
        return pixels

    def load_vision(self) -> None:
        """Loads the vision half now, if it is one that is loaded when it is first used."""
        getattr(self.vision, "load", lambda: None)()

    def check_clip(self, source: str) -> None:
        """Raises `MediaError` if the model reads no clips. Called before a clip is decoded."""
        if package := getattr(self.vision, "clips_need", ""):
            raise MediaError(
                f"{source}: this model reads clips only with the package {package}", f"pip install {quote(package)}"
            )
        if not supports_clips(self.vision):
            hint = "give it pictures, or name a model that does: -m qwen2.5-vl-7b (others: prunesid models)"
            raise MediaError(f"{source}: this model reads no clips", hint)

    @property
    def min_decode_side(self) -> int | None:
        """Smallest shorter side, in pixels, of a JPEG that is decoded smaller; None: decode at full size."""
        side = getattr(self.vision, "fixed_short_side", None) if self.downscale else None
        return None if side is None else DOWNSCALE_MARGIN * side

    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Runs the vision tower on a batch, and joins frames of clips into windows."""
        with self.stopwatch.stage("encode"):
            return [join_windows(item, self.sampling.window) for item in self.vision.encode(items)]

    @property
    def spreads_across_items(self) -> bool:
        """Whether the budget is an average over items."""
        return self.budget.spread is Spread.ACROSS_ITEMS and not self.budget.keeps_all

    def method_for(self, segment: Segment) -> str | Method:
        """The method for a segment. Some names mean different code by model, and some have a variant for windows."""
        model_methods: Mapping[object, Method] = getattr(self.vision, "methods", {})
        method = model_methods.get(self.method, self.method)
        return WINDOWED_METHODS.get(method, method) if segment.frames > 1 else method

    def mean_tokens(self, total: int) -> int:
        """How many of `total` tokens an average item keeps."""
        return min(self.budget.tokens(total), total)

    def token_counts(
        self, phis: Sequence[float], totals: Sequence[int], fixed_items: Sequence[FixedItem] = ()
    ) -> list[int]:
        """How many tokens each item of a closed collection keeps (Eq. 7, if the budget is spread across items).

        Args:
            phis: Information of each item.
            totals: Visual tokens of each item.
            fixed_items: Further items of the collection, whose numbers of tokens cannot change any more.

        Raises:
            UsageError: There is one item only, and nothing is known to compare it with.
        """
        means = [self.mean_tokens(total) for total in totals]
        if not self.spreads_across_items:
            return means
        bounds = [token_bounds(mean, total) for mean, total in zip(means, totals, strict=True)]
        if len(phis) + len(fixed_items) > 1:
            left = sum(means) + sum(self.mean_tokens(item.total) - item.tokens for item in fixed_items)
            scale = max(left, 0) / max(sum(means), 1)
            return spread_tokens(phis, [scale * mean for mean in means], bounds)
        if not self.sample:
            raise UsageError(
                "--dynamic for one image needs the information of an average one, which this model does not carry",
                hint=f"give several images, or measure it with: {calibrate_command('CACHE')}",
            )
        counts = []
        for value, total, mean, (floor, ceiling) in zip(phis, totals, means, bounds, strict=True):
            average_phi = reference_phi(self.sample, mean, *token_bounds(mean, total))
            counts.append(tokens_against_reference(value, average_phi or value, mean, floor, ceiling))
        return counts

    def prune(self, items: Sequence[Encoded]) -> list[TokenSet]:
        """The kept tokens of each of a closed collection of items."""
        information = self.information(items)
        phis = [item_information(values, item) for values, item in zip(information, items, strict=True)]
        return self.keep(items, self.token_counts(phis, [item.layout.total for item in items]), information)

    def information(self, items: Sequence[Encoded]) -> list[Information]:
        """phi (Eq. 7) of each segment of each item. The host waits for the device once."""
        segments = [segment for item in items for segment in item.segments]
        groups = group_stackable(segments)
        stacked = [torch.stack([segments[position].features for position in group]) for group in groups]
        values = torch.cat([compute_phi(features) for features in stacked]).tolist()
        by_position = dict(zip([position for group in groups for position in group], values, strict=True))
        ordered = iter([by_position[position] for position in range(len(segments))])
        return [tuple(next(ordered) for _ in item.segments) for item in items]

    def segment_budgets(self, item: Encoded, count: int, information: Information) -> list[int]:
        """How many of an item's `count` tokens each of its segments keeps, its CLS included."""
        capacity = [segment.capacity for segment in item.segments]
        if count >= min(item.layout.total, sum(capacity)):
            return capacity
        if len(capacity) == 1:
            return [count]
        means = [count * tokens / sum(capacity) for tokens in capacity]
        weights = [1.0] * len(capacity) if self.budget.spread is Spread.NONE else information
        bounds = [token_bounds(mean, tokens) for mean, tokens in zip(means, capacity, strict=True)]
        return spread_tokens(weights, means, bounds)

    def keep(
        self, items: Sequence[Encoded], counts: Sequence[int], information: Sequence[Information] = ()
    ) -> list[TokenSet]:
        """Selects which tokens of each item to keep.

        Args:
            items: A batch of encoded items.
            counts: How many tokens to keep of each.
            information: Their information, if it is known already.

        Raises:
            NonFiniteError: Features or saliency have NaN or infinity; `rows` are the items' rows.
        """
        with self.stopwatch.stage("select"):
            information = information or self.information(items)
            bad_rows = [row for row, values in enumerate(information) if not all(map(math.isfinite, values))]
            if bad_rows:
                raise NonFiniteError("NaN or infinity in the information of a segment", rows=bad_rows)
            budgets = [self.segment_budgets(*args) for args in zip(items, counts, information, strict=True)]
            segments = [segment for item in items for segment in item.segments]
            owners = [row for row, item in enumerate(items) for _ in item.segments]
            try:
                selections = self._select(segments, [budget for of_item in budgets for budget in of_item])
            except NonFiniteError as error:
                rows = sorted({owners[position] for position in error.rows})
                raise NonFiniteError(error.problem, error.hint, rows) from error
            # All indices are copied at once: the host waits for the device at each copy.
            lengths = [len(selection.indices) for selection in selections]
            indices = torch.cat([selection.indices for selection in selections]).cpu().split(lengths)
            token_sets, start = [], 0
            for item, of_item, count in zip(items, budgets, counts, strict=True):
                own = slice(start, start + len(item.segments))
                kept = [one.tolist() for one in indices[own]]
                token_sets.append(assemble_token_set(item, selections[own], kept, of_item, count >= item.layout.total))
                start = own.stop
            return token_sets

    def _select(self, segments: Sequence[Segment], budgets: Sequence[int]) -> list[Selection]:
        """What to keep of each segment. `NonFiniteError.rows` are positions of segments."""
        selections: dict[int, Selection] = {}
        for group in group_stackable(segments):
            first = segments[group[0]]
            features = torch.stack([segments[position].features for position in group])
            saliency, *others = (
                None
                if getattr(first, name) is None
                else torch.stack([getattr(segments[position], name) for position in group])
                for name in OPTIONAL_TENSORS
            )
            try:
                check_finite(features, saliency, *others)
            except NonFiniteError as error:
                raise NonFiniteError(error.problem, error.hint, [group[row] for row in error.rows]) from error
            num_cls = int(first.cls is not None)
            group_budgets = [budgets[position] for position in group]
            selected = select_batch(features, saliency, group_budgets, self.method_for(first), num_cls)
            selections |= dict(zip(group, selected, strict=True))
        return [selections[position] for position in range(len(segments))]
