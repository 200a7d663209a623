"""Pictures and clips -> what is kept of each: encoded once, for as long as there is room to remember it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prunesid_cli.errors import ModelError, NonFiniteError
from prunesid_cli.integrations.lmms_eval.requests import Asked, MediaRequest
from prunesid_cli.pipeline.compress import not_finite, on_host
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.segments import of_item
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.types import Encoded, TokenSet

ROOM = 1 << 30
"""Bytes of kept tokens: 64 of LLaVA-1.5 in 16 bits are those of 8,192 pictures."""

Key = tuple[str, int]
Counts = Mapping[tuple[str, Key], int]
"""How many tokens a picture gets in a task; what is not in it, gets as many as all."""


@dataclass
class ReplayableListing:
    """Token sets; what was not asked for the longest goes first where they take more than `room` bytes."""

    room: int = ROOM
    sets: OrderedDict[tuple[Key, int | None], TokenSet] = field(default_factory=OrderedDict)
    size: int = 0

    def get(self, key: tuple[Key, int | None]) -> TokenSet | None:
        if key in self.sets:
            self.sets.move_to_end(key)
        return self.sets.get(key)

    def add(self, key: tuple[Key, int | None], tokens: TokenSet) -> None:
        self.sets[key] = tokens
        self.size += tokens.tokens.nbytes
        while self.size > self.room and len(self.sets) > 1:
            self.size -= self.sets.popitem(last=False)[1].tokens.nbytes


@dataclass
class VisionCache:
    """`encoded`: how many pictures and clips the tower has seen so far."""

    pruner: Pruner
    batch_size: int
    remembered: ReplayableListing = field(default_factory=ReplayableListing)
    encoded: int = 0

    def plan(self, asked: Iterable[Asked]) -> Counts:
        """Eq. 7 over the distinct pictures of each task, all of which are encoded for that: on average as many tokens
        as the budget says, whatever other tasks are asked."""
        if not self.pruner.spreads:
            return {}
        measured = dict[str, dict[Key, tuple[float, int]]]()
        waiting = list[tuple[str, MediaRequest]]()
        known = set[tuple[str, Key]]()
        for one in asked:
            for sight in one.sights(self.pruner.sampling):
                if (one.task, sight.key) not in known:
                    known.add((one.task, sight.key))
                    waiting.append((one.task, sight))
            if len(waiting) >= self.batch_size:
                self._measure(waiting, measured)
                waiting = []
        self._measure(waiting, measured)
        return {
            (task, key): count
            for task, own in measured.items()
            for key, count in zip(own, self.pruner.counts(*map(list, zip(*own.values(), strict=True))), strict=True)
        }

    def _measure(
        self, waiting: Sequence[tuple[str, MediaRequest]], measured: dict[str, dict[Key, tuple[float, int]]]
    ) -> None:
        found = run_in_halves_on_oom(self._information, [sight for _, sight in waiting], _too_large) if waiting else []
        for (task, sight), value in zip(waiting, found, strict=True):
            measured.setdefault(task, {})[sight.key] = value

    def _information(self, sights: Sequence[MediaRequest]) -> list[tuple[float, int]]:
        encoded = self._encode(sights)
        phis = [of_item(*pair) for pair in zip(self.pruner.information(encoded), encoded, strict=True)]
        for sight, phi in zip(sights, phis, strict=True):
            if not math.isfinite(phi):
                raise not_finite(sight.load().source)
        return [(phi, item.layout.total) for phi, item in zip(phis, encoded, strict=True)]

    def see(self, asked: Sequence[Asked], counts: Counts) -> list[list[TokenSet]]:
        """What is kept of the pictures and clips of each request."""
        sights = [one.sights(self.pruner.sampling) for one in asked]
        wanted = [
            [(sight.key, counts.get((one.task, sight.key))) for sight in some]
            for one, some in zip(asked, sights, strict=True)
        ]
        by_key = {
            key: sight for keys, some in zip(wanted, sights, strict=True) for key, sight in zip(keys, some, strict=True)
        }
        found = {key: held for key in by_key if (held := self.remembered.get(key))}
        missing = [key for key in by_key if key not in found]
        for start in range(0, len(missing), self.batch_size):
            some = missing[start : start + self.batch_size]
            made = self._kept([by_key[key] for key in some], [count for _, count in some])
            found |= dict(zip(some, made, strict=True))
            for key in some:
                self.remembered.add(key, found[key])
        return [[found[key] for key in keys] for keys in wanted]

    def _kept(self, sights: Sequence[MediaRequest], counts: Sequence[int | None]) -> Sequence[TokenSet]:
        encoded = self._encode(sights)
        given = [
            self.pruner.mean(item.layout.total) if count is None else count
            for item, count in zip(encoded, counts, strict=True)
        ]
        try:
            return on_host(self.pruner.keep(encoded, given))
        except NonFiniteError as error:
            raise not_finite(sights[error.rows[0]].load().source) from error

    def _encode(self, sights: Sequence[MediaRequest]) -> list[Encoded]:
        self.encoded += len(sights)
        return self.pruner.encode([self.pruner.preprocess(one.load(), one.num_other_images) for one in sights])


def _too_large(sight: MediaRequest) -> tuple[float, int]:
    raise ModelError(f"{sight.load().source}: not enough memory for one picture", "device=cpu, or dtype=bf16")
