"""Which frames of a clip are taken. They are chosen by time, so a variable frame rate changes nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from prunesid_cli.errors import MediaError

DEFAULT_FRAMES = 8
MAX_FRAMES = 1024
"""Maximum number of frames of one clip, which are in memory together."""
EPSILON_SECONDS = 1e-6
"""Times are sums of floats: a moment that means a frame may fall just short of it."""


@dataclass(frozen=True)
class FrameSampling:
    """How frames are taken from a clip: a number of them, spread evenly over its time, or so many per second.

    Attributes:
        frames: Number of frames, with the first and the last one.
        fps: Frames per second; if given, `frames` is not used.
        backend: Decoder: "auto", "decord" or "pyav".
        window: Number of successive frames from which tokens are selected together (`pipeline.frame_windows`).
    """

    frames: int = DEFAULT_FRAMES
    fps: float | None = None
    backend: str = "auto"
    window: int = 1

    def __str__(self) -> str:
        rate = f"{self.frames} frames" if self.fps is None else f"{self.fps:g} fps"
        decoder = "" if self.backend == "auto" else f" by {self.backend}"
        window = f" in windows of {self.window}" if self.window > 1 else ""
        return rate + decoder + window

    def select_frames(self, times: Sequence[float]) -> list[int]:
        """Choose the frames that are on screen at the sampled moments.

        A clip with no more frames than asked for gives all of them. A frame that is shown for longer than the time
        between two moments is taken once, so there may be fewer frames than asked for.

        Args:
            times: Times of all frames in seconds, increasing.

        Returns:
            Indices of the frames, increasing.

        Raises:
            MediaError: More than `MAX_FRAMES`. The message does not name the clip.
        """
        if self.fps is None and len(times) <= self.frames:
            return list(range(len(times)))
        start, length = times[0], times[-1] - times[0]
        if self.fps is not None:
            # Too many moments are no error yet: they may fall on few frames.
            count = int(length * self.fps + EPSILON_SECONDS) + 1
            moments = list(times) if count > len(times) else [start + number / self.fps for number in range(count)]
        elif self.frames == 1:
            moments = [start + length / 2]
        else:
            interval = length / (self.frames - 1)
            moments = [start + number * interval for number in range(self.frames)]
        indices = sorted({max(bisect_right(times, moment + EPSILON_SECONDS) - 1, 0) for moment in moments})
        if len(indices) > MAX_FRAMES:
            problem = f"{self} of {length:.0f} s are {len(indices):,} frames, more than the limit of {MAX_FRAMES:,}"
            raise MediaError(problem, "give a lower --fps, or --frames")
        return indices


DEFAULT_SAMPLING = FrameSampling()
