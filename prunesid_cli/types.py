"""Frozen values that pass between the stages, and the letters that docstrings use for shapes.

B  batch                       T  kept visual tokens
S  segments of one item        G  groups
N  visual tokens of a segment  L  prompt length
C  width at the cut            D  width of the language model

"The cut" is where a model's visual tokens pass from the vision half to the language half. An "item" is one image or
clip. A "slot" is the position of a token in the sequence that the stock model reads for an item.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precision as options name it -> as torch calls it."""
CLS_NOT_READ = -1
"""Slot of a CLS token that the stock model does not read."""
Columns = tuple[tuple[str, Any], ...]
"""Names and values of columns of a table."""
Box = tuple[float, float, float, float]
"""A part of an image: left, top, right, bottom, as fractions of its width and height."""
WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Placement:
    """Where and how a half of a model runs.

    Attributes:
        device: The device; of a model on several GPUs, the first one.
        dtype: The precision.
        attention: The attention kernels, as transformers calls them, for the model or by part; None lets transformers
            choose for each part.
        multi_gpu: Whether a language model may be spread over all GPUs.
        has_language_layers: Whether the layers of a language model are loaded. Without them, a language half makes
            prompts, and another engine answers them.
    """

    device: torch.device
    dtype: torch.dtype
    attention: str | Mapping[str, str | None] | None
    multi_gpu: bool = False
    has_language_layers: bool = True


@dataclass(frozen=True)
class Region:
    """A grid of visual tokens among the slots of an item: a picture, a tile of it, or a frame of a clip.

    Attributes:
        first: Slot of its first token.
        rows: Rows of the grid.
        columns: Columns of the grid.
        stride: Slots from one row to the next. It exceeds `columns` if other tokens, such as newlines, end a row.
        box: The part of the picture that it shows: left, top, right, bottom, as shares of width and height.
        time: Seconds from the start of a clip; None for a picture.
        tick: Its position in time under M-RoPE; the start of the item is 0.
    """

    first: int
    rows: int
    columns: int
    stride: int
    box: Box = WHOLE_IMAGE
    time: float | None = None
    tick: int = 0

    @property
    def slots(self) -> range | list[int]:
        """Its slots, row by row."""
        if self.stride == self.columns:
            return range(self.first, self.first + self.rows * self.columns)
        starts = range(self.first, self.first + self.rows * self.stride, self.stride)
        return [start + column for start in starts for column in range(self.columns)]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The input that an item came from. A cache stores these fields with the item.

    A new field needs a default. It is then stored only where it differs from the default, and caches that were made
    without it stay readable.

    Attributes:
        source: Path as the user named it; "-" for stdin.
        digest: SHA-256 of the input's bytes, in hex.
        size: Width and height of the upright picture, or of a frame, in pixels.
        notes: What was done while decoding that the user might not expect.
        sampling: How the frames of a clip were chosen; empty for a picture.
        decoder: Name and version of the clip decoder; empty for a picture.
        columns: What the table that named it says of it beside: names and values, as JSON has them.
    """

    source: str
    digest: str
    size: tuple[int, int]
    notes: tuple[str, ...]
    sampling: str = ""
    decoder: str = ""
    columns: Columns = ()

    @property
    def provenance(self) -> Provenance:
        """These fields alone, of an object that has more."""
        return Provenance(**{field.name: getattr(self, field.name) for field in fields(Provenance)})


@dataclass(frozen=True)
class Layout:
    """How the stock model reads an item: a sequence of `total` slots, in runs with text between them.

    Attributes:
        text: The text that stands for the item in the prompt, with one placeholder for each run.
        runs: Number of slots of each placeholder.
        regions: Where the visual tokens are. Slots outside of all regions are structural: newlines, or a CLS token.
        mrope_deltas: Under M-RoPE, by how much each run shifts the positions of what follows it; else empty.
    """

    text: str
    runs: tuple[int, ...]
    regions: tuple[Region, ...]
    mrope_deltas: tuple[int, ...] = ()

    @cached_property
    def total(self) -> int:
        """Number of slots."""
        return sum(self.runs)

    @property
    def num_visual(self) -> int:
        """Number of visual tokens, without structural ones."""
        return sum(region.rows * region.columns for region in self.regions)

    @property
    def is_clip(self) -> bool:
        return any(region.time is not None for region in self.regions)

    @property
    def visible_share(self) -> float:
        """Share of the picture's area, or of each frame's, that the model's preprocessing does not crop off."""
        left, top, right, bottom = zip(*(region.box for region in self.regions), strict=True)
        # Boxes extend beyond the picture where it was padded.
        width, height = min(max(right), 1) - max(min(left), 0), min(max(bottom), 1) - max(min(top), 0)
        return width * height


@dataclass(frozen=True)
class PixelScale:
    """What an image processor computes of each number of an image: (number * factor - mean) / std.

    Attributes:
        factor: The rescaling.
        mean: One for each channel.
        std: One for each channel.
    """

    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Patching:
    """How frames are cut into the patches that a tower reads.

    Attributes:
        side: Height and width of a patch in pixels.
        cell: Number of patches on a side of a cell: its patches follow each other, and become one token.
        frames: Number of frames that share a patch. The last frame fills up the last patches.
    """

    side: int
    cell: int
    frames: int


@dataclass(frozen=True)
class Pixels:
    """One item as input of the vision tower.

    Attributes:
        tensors: Tensors by the names of the tower's arguments; first the pixels: [S, 3, H, W], or patches [P, 3 * E];
            or frames [S, H, W, 3], with `patching`. They hold the rows of this item only.
        layout: How the stock model reads the item.
        scale: What the tower reads of the pixels, which are whole numbers then; None if they were scaled already.
        patching: How the frames become patches.
    """

    tensors: Mapping[str, Tensor]
    layout: Layout
    scale: PixelScale | None = None
    patching: Patching | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows of the pixels as the tower reads them: S, or P."""
        pixels = next(iter(self.tensors.values()))
        if self.patching is None:
            return len(pixels)
        frames, height, width, _ = pixels.shape
        return -(-frames // self.patching.frames) * (height // self.patching.side) * (width // self.patching.side)


@dataclass(frozen=True)
class Segment:
    """What one selection works on: a picture, a tile, a frame, or a window of frames.

    Attributes:
        features: [N, C], visual tokens at the cut.
        saliency: [N], how important the model itself finds each token; None if it says nothing about that.
        cls: [C], the CLS token at the cut; None if there is none.
        extra: [N, E], what else a token carries, stored after its features. The selection does not see it.
        slots: N slots, one for each token; None: 0 to N - 1.
        cls_slot: Slot of the CLS token; CLS_NOT_READ if the stock model does not read it.
        frames: Number of frames that the tokens come from, frame after frame.
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
    """One item as the vision half gives it. No two segments share a slot."""

    segments: tuple[Segment, ...]
    layout: Layout


@dataclass(frozen=True)
class TokenSet:
    """The kept visual tokens of one item. A cache stores them, and the language half needs nothing else.

    Attributes:
        tokens: [T, C], at the cut.
        slots: T slots, one for each row. CLS_NOT_READ, always first, marks a CLS token that the stock model does not
            read.
        layout: How the stock model reads the whole item.
        is_unpruned: Whether all tokens are kept. Only then are structural tokens read as well: without the rows that
            they end, newlines mean nothing.
    """

    tokens: Tensor
    slots: tuple[int, ...]
    layout: Layout
    is_unpruned: bool

    @property
    def kept(self) -> int:
        """Number of tokens that the language model reads, structural ones included."""
        return self.layout.total if self.is_unpruned else len(self.slots)


@dataclass(frozen=True)
class Prompt:
    """A whole prompt as input of the language model.

    Attributes:
        ids: [L], token ids, with a placeholder for each visual token.
        visual: [L] bool, which are visual tokens, structural ones included.
        features: Embeddings of the V visual tokens, [V, D]; or [V, D * (1 + K)] if something is added to them after
            each of the first K layers (deepstack).
        positions: [3, L], time, row and column under M-RoPE; None if tokens are simply counted.
    """

    ids: Tensor
    visual: Tensor
    features: Tensor
    positions: Tensor | None = None


@dataclass(frozen=True)
class Generation:
    """How answers are generated.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 decodes greedily.
        seed: Seed of sampling, with a temperature.
        on_text: Called with each piece of the text of an answer that is generated alone.
        force_full_length: Whether every answer gets `max_new_tokens`, even after an end token. For benchmarks.
        on_token: Called after each token of a batch.
        choices: The possible answers, which are scored, so that nothing is generated; empty for any answer.
        schema: A JSON schema that the answer obeys, as `models.shared.schema.check_schema` gives it; empty for none.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    on_text: Callable[[str], None] | None = None
    force_full_length: bool = False
    on_token: Callable[[], object] | None = None
    choices: tuple[str, ...] = ()
    schema: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: Its text, without special tokens.
        prompt_tokens: Length of the prompt, visual tokens included.
        new_tokens: Length of the answer; 0 if it was chosen.
        probabilities: The probability of each choice; empty if none were given.
        is_json: Whether it is the JSON that a schema asked for.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    probabilities: Mapping[str, float] = field(default_factory=dict)
    is_json: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """The answer as JSON records have it: its text or its value, and the probabilities of choices."""
        rounded = {choice: round(probability, 6) for choice, probability in self.probabilities.items()}
        return {"answer": json.loads(self.text) if self.is_json else self.text} | ({"p": rounded} if rounded else {})
