"""Frozen values that pass between the stages, and the shape letters used in every docstring.

B  batch                       T  kept visual tokens
S  segments of one item        G  groups
N  visual tokens of a segment  L  prompt length
C  width at the cut            D  width of the language model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CLS_NOT_READ = -1
"""The slot of a CLS token that the stock model does not read."""


@dataclass(frozen=True)
class Placement:
    """Where and how a half of a model runs; `everywhere`: a language model may be laid over all GPUs."""

    device: torch.device
    dtype: torch.dtype
    attention: str
    multi_gpu: bool = False


@dataclass(frozen=True)
class Region:
    """A raster of visual tokens among the slots of an item: a picture, a tile of one, or a frame of a clip.

    first          slot of its first token
    rows, columns  of the raster
    stride         slots from one row to the next: more than `columns` where something else ends a row
    box            the part of the picture that it shows: left, top, right, bottom, as shares of width and height
    time           seconds from the start of a clip; None for a picture
    tick           its place in time under M-RoPE, where 0 is the start of the item
    """

    first: int
    rows: int
    columns: int
    stride: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    time: float | None = None
    tick: int = 0

    @property
    def slots(self) -> range | list[int]:
        """In raster order."""
        if self.stride == self.columns:
            return range(self.first, self.first + self.rows * self.columns)
        starts = range(self.first, self.first + self.rows * self.stride, self.stride)
        return [start + column for start in starts for column in range(self.columns)]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The input that an item came from. A cache stores these fields with the item.

    A new field needs a default: it is then stored only where it differs from that, and caches without it stay readable.

    Attributes:
        source: Path as the user named it; "-" for stdin.
        digest: SHA-256 of the input's bytes, in hex.
        size: Width and height of the upright picture, or of a frame, in pixels.
        notes: What was done while decoding that the user might not expect.
        sampling: How the frames of a clip were chosen; empty for a picture.
        decoder: Name and version of the clip decoder; empty for a picture.
    """

    source: str
    digest: str
    size: tuple[int, int]
    notes: tuple[str, ...]
    sampling: str = ""
    decoder: str = ""

    @property
    def provenance(self) -> Provenance:
        """These fields alone, of an object that has more."""
        return Provenance(**{one.name: getattr(self, one.name) for one in fields(Provenance)})


@dataclass(frozen=True)
class Layout:
    """How the stock model reads an item: a sequence of `total` slots, numbered from 0, in runs with text between them.

    text      what stands for the item in the prompt, one placeholder for each run
    runs      slots of each placeholder
    regions   where the visual tokens are; slots of none of them are structural: newlines, a CLS that the model reads
    advances  under M-RoPE, by how much each run moves the positions of what follows it; else empty
    """

    text: str
    runs: tuple[int, ...]
    regions: tuple[Region, ...]
    mrope_deltas: tuple[int, ...] = ()

    @cached_property
    def total(self) -> int:
        return sum(self.runs)

    @property
    def is_clip(self) -> bool:
        return any(region.time is not None for region in self.regions)


@dataclass(frozen=True)
class Pixels:
    """One item as the vision tower takes it: tensors by the names of its arguments, rows of one item only."""

    tensors: Mapping[str, Tensor]
    layout: Layout


@dataclass(frozen=True)
class Segment:
    """What one selection runs over: a picture, a tile, a frame or a window of frames.

    features [N, C]    visual tokens at the cut
    saliency [N]       the model's own importance of a token; None where it offers none
    summary  [C]       the CLS token at the cut; None where there is none
    extra    [N, E]    what else a token carries, unseen by the selection, to stand after its features; None: nothing
    slots    N         where the stock model reads each token; None: 0 to N - 1
    summary_slot       where it reads the CLS token; SUMMARY: nowhere
    frames             of how many its tokens are, one after the other
    """

    features: Tensor
    saliency: Tensor | None = None
    cls: Tensor | None = None
    extra: Tensor | None = None
    slots: tuple[int, ...] | None = None
    cls_slot: int = CLS_NOT_READ
    frames: int = 1

    @property
    def capacity(self) -> int:
        """How many tokens can be kept of it."""
        return len(self.features) + (self.cls is not None)


@dataclass(frozen=True)
class Encoded:
    """What the vision half makes of one item. No two segments share a slot."""

    segments: tuple[Segment, ...]
    layout: Layout


@dataclass(frozen=True)
class TokenSet:
    """The kept visual tokens of one item: what a cache stores, and all that the language half needs.

    tokens  [T, C]  at the cut
    slots   T       where the stock model reads each row; SUMMARY, and then first, for a CLS that it does not read
    layout          of the whole item
    whole           whether nothing was pruned. Only then structural tokens are read, too: without the rows that they
                    end, newlines mean nothing.
    """

    tokens: Tensor
    slots: tuple[int, ...]
    layout: Layout
    is_unpruned: bool

    @property
    def kept(self) -> int:
        """Tokens that the language model reads, structural ones included."""
        return self.layout.total if self.is_unpruned else len(self.slots)


@dataclass(frozen=True)
class Prompt:
    """A whole prompt as the language model reads it.

    embeds    [L, D]
    visual    [L] bool     visual tokens, structural ones included
    positions [3, L]       under M-RoPE: time, row, column; None where tokens are simply counted
    deepstack [K, V, D]    what is added to the V visual tokens after each of the first K layers; None where nothing is
    """

    embeds: Tensor
    visual: Tensor
    positions: Tensor | None = None
    deepstack: Tensor | None = None


@dataclass(frozen=True)
class Generation:
    """How to decode: greedy unless a temperature is given; `seed` is used by sampling alone; `stream` gets the text of
    an answer that is generated alone, as it comes; `full`: whatever would end an answer, it gets all of its tokens;
    `told` is called whenever the answers of a batch have got one more token."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    on_text: Callable[[str], None] | None = None
    force_full_length: bool = False
    on_token: Callable[[], object] | None = None


@dataclass(frozen=True)
class Answer:
    """text, without special tokens; how many tokens the prompt (visual ones included) and the answer had."""

    text: str
    prompt_tokens: int
    new_tokens: int
