"""Which frames of a clip are looked at: chosen by their times, so that a variable frame rate changes nothing. And how
many of them are selected from together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from prunesid_cli.errors import MediaError

DEFAULT_FRAMES = 8
MAX_FRAMES = 1024
"""Of one clip: they are in memory together."""


@dataclass(frozen=True)
class FrameSampling:
    """`frames` spread evenly over the time of a clip, both ends included, or, where it is given, `fps` a second.

    backend: auto, decord or pyav.
    window: at most so many successive frames are selected from together (`windows.joined`).
    """

    frames: int = DEFAULT_FRAMES
    fps: float | None = None
    backend: str = "auto"
    window: int = 1

    def __str__(self) -> str:
        how = f"{self.frames} frames" if self.fps is None else f"{self.fps:g} fps"
        by = "" if self.backend == "auto" else f" by {self.backend}"
        return how + by + (f" in windows of {self.window}" if self.window > 1 else "")

    def choose(self, times: Sequence[float]) -> list[int]:
        """times: of all frames in seconds, rising -> numbers of those on screen at the moments to look at, each once.

        A clip of no more frames than asked gives all of them. Where a picture stands still for longer than from one
        moment to the next, there are fewer than asked.

        Raises:
            MediaError: more than `MAX_FRAMES`; its text names no source.
        """
        if self.fps is None and len(times) <= self.frames:
            return list(range(len(times)))
        start, length = times[0], times[-1] - times[0]
        if self.fps is None:
            apart = length / max(self.frames - 1, 1)
            moments = [start + number * apart for number in range(self.frames)]
            moments = moments if self.frames > 1 else [start + length / 2]
        else:
            # Not worth an error: that many may fall on few frames.
            count = int(length * self.fps + 1e-6) + 1
            moments = list(times) if count > len(times) else [start + number / self.fps for number in range(count)]
        # Sums of floats: a moment that means a frame may fall just short of it.
        chosen = sorted({max(bisect_right(times, moment + 1e-6) - 1, 0) for moment in moments})
        if len(chosen) > MAX_FRAMES:
            problem = f"{self} of {length:.0f} s are {len(chosen):,} frames, more than the limit of {MAX_FRAMES:,}"
            raise MediaError(problem, "give a lower --fps, or --frames")
        return chosen


DEFAULT_SAMPLING = FrameSampling()
