"""Vision cache: each picture and clip is encoded once, as long as its kept tokens fit into the cache's memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from prunesid_cli.errors import ModelError, NonFiniteError, non_finite_error
from prunesid_cli.integrations.lmms_eval.requests import MediaRequest, Request
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.segments import item_information, to_host
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.types import Encoded, TokenSet

MAX_CACHE_BYTES = 1 << 30
"""Bytes of kept tokens. With 64 tokens per picture, LLaVA-1.5 in 16 bits has room for 8,192 pictures."""

MediaKey = tuple[str, int]
"""Key of a `MediaRequest`."""
Counts = Mapping[tuple[str, MediaKey], int]
"""(task, media) -> tokens to keep. Media that are missing get the budget itself."""


@dataclass
class TokenSetCache:
    """Token sets by media and number of tokens. The least recently used ones are dropped first.

    Attributes:
        max_bytes: Limit of the tokens' size.
        sets: The token sets, the least recently used first.
        nbytes: Size of their tokens.
    """

    max_bytes: int = MAX_CACHE_BYTES
    sets: OrderedDict[tuple[MediaKey, int | None], TokenSet] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def get(self, key: tuple[MediaKey, int | None]) -> TokenSet | None:
        """Return a token set; None if it is not in the cache."""
        if key in self.sets:
            self.sets.move_to_end(key)
        return self.sets.get(key)

    def add(self, key: tuple[MediaKey, int | None], tokens: TokenSet) -> None:
        """Add a token set, and drop others if there is no room. The last one stays even if it is too large."""
        self.sets[key] = tokens
        self.nbytes += tokens.tokens.nbytes
        while self.nbytes > self.max_bytes and len(self.sets) > 1:
            _, dropped = self.sets.popitem(last=False)
            self.nbytes -= dropped.tokens.nbytes


@dataclass
class VisionCache:
    """Encodes and prunes media, or takes their token sets from the cache.

    Attributes:
        pruner: The vision half, with budget and method.
        batch_size: Media that are encoded together.
        token_sets: The cache.
        num_encoded: Number of pictures and clips that were encoded.
    """

    pruner: Pruner
    batch_size: int
    token_sets: TokenSetCache = field(default_factory=TokenSetCache)
    num_encoded: int = 0

    def plan(self, requests: Iterable[Request]) -> Counts:
        """Spread a dynamic budget (Eq. 7) over the distinct media of each task.

        All of them are encoded for that. They keep as many tokens on average as the budget says, whatever other tasks
        are asked. With another budget, nothing is planned.
        """
        if not self.pruner.spreads_across_items:
            return {}
        information = dict[str, dict[MediaKey, tuple[float, int]]]()
        waiting = list[tuple[str, MediaRequest]]()
        seen = set[tuple[str, MediaKey]]()
        for request in requests:
            for media in request.media_requests(self.pruner.sampling):
                if (request.task, media.key) not in seen:
                    seen.add((request.task, media.key))
                    waiting.append((request.task, media))
            if len(waiting) >= self.batch_size:
                self._measure(waiting, information)
                waiting = []
        if waiting:
            self._measure(waiting, information)
        counts = dict[tuple[str, MediaKey], int]()
        for task, measured in information.items():
            phis, totals = zip(*measured.values(), strict=True)
            for key, count in zip(measured, self.pruner.token_counts(phis, totals), strict=True):
                counts[task, key] = count
        return counts

    def token_sets_of(self, requests: Sequence[Request], counts: Counts) -> list[list[TokenSet]]:
        """Return the kept tokens of the media of each request, in order."""
        by_key = dict[tuple[MediaKey, int | None], MediaRequest]()
        keys_by_request = []
        for request in requests:
            keys = []
            for media in request.media_requests(self.pruner.sampling):
                key = media.key, counts.get((request.task, media.key))
                by_key[key] = media
                keys.append(key)
            keys_by_request.append(keys)
        # Token sets are held here as well: the cache may drop them before all are there.
        token_sets = {key: cached for key in by_key if (cached := self.token_sets.get(key))}
        missing = [key for key in by_key if key not in token_sets]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            kept = self._prune([by_key[key] for key in batch], [count for _, count in batch])
            for key, tokens in zip(batch, kept, strict=True):
                token_sets[key] = tokens
                self.token_sets.add(key, tokens)
        return [[token_sets[key] for key in keys] for keys in keys_by_request]

    def _measure(
        self,
        waiting: Sequence[tuple[str, MediaRequest]],
        information: dict[str, dict[MediaKey, tuple[float, int]]],
    ) -> None:
        """Add the information and the number of tokens of media to those of their tasks."""
        media = [item for _, item in waiting]
        for (task, item), value in zip(
            waiting, run_in_halves_on_oom(self._information, media, _raise_too_large), strict=True
        ):
            information.setdefault(task, {})[item.key] = value

    def _information(self, media: Sequence[MediaRequest]) -> list[tuple[float, int]]:
        encoded = self._encode(media)
        results = []
        for request, values, item in zip(media, self.pruner.information(encoded), encoded, strict=True):
            phi = item_information(values, item)
            if not math.isfinite(phi):
                raise non_finite_error(request.load().source)
            results.append((phi, item.layout.total))
        return results

    def _prune(self, media: Sequence[MediaRequest], counts: Sequence[int | None]) -> Sequence[TokenSet]:
        encoded = self._encode(media)
        budgets = [
            self.pruner.mean_tokens(item.layout.total) if count is None else count
            for item, count in zip(encoded, counts, strict=True)
        ]
        try:
            return to_host(self.pruner.keep(encoded, budgets))
        except NonFiniteError as error:
            raise non_finite_error(media[error.rows[0]].load().source) from error

    def _encode(self, media: Sequence[MediaRequest]) -> list[Encoded]:
        self.num_encoded += len(media)
        return self.pruner.encode([self.pruner.preprocess(item.load(), item.num_other_images) for item in media])


def _raise_too_large(media: MediaRequest) -> NoReturn:
    raise ModelError(f"{media.load().source}: not enough memory for one picture", "device=cpu, or dtype=bf16")
