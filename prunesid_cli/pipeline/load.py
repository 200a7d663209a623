"""Turns listed files into inputs of the vision tower. A file that cannot be read gives a record, not an exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunesid_cli.errors import PruneSIDError, UnexpectedError
from prunesid_cli.inputs.image import hash_bytes, load_image_bytes, read_bytes
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.inputs.video.load import hash_clip, is_clip_file, load_clip
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.results import CachedInput, FailedInput
from prunesid_cli.pipeline.unchanged import read_stamp
from prunesid_cli.text import DEBUG_OPTION
from prunesid_cli.tokencache import CacheWriter, Stamp
from prunesid_cli.types import Pixels, Provenance


@dataclass(frozen=True)
class LoadedInput:
    """A decoded and preprocessed input. Its pictures at full size are freed.

    Attributes:
        number: Its position in the listing, from 0.
        provenance: Where it came from.
        pixels: Inputs of the vision tower.
        stamp: Size and modification time of its file when it was read; None if they may not be relied on.
        num_images: Pictures, tiles and frames that the vision tower encodes.
        nbytes: Bytes of `pixels`.
    """

    number: int
    provenance: Provenance
    pixels: Pixels
    stamp: Stamp | None
    num_images: int
    nbytes: int

    @property
    def source(self) -> str:
        return self.provenance.source


@dataclass(frozen=True)
class InputLoader:
    """Reads, decodes and preprocesses the inputs that a cache does not hold. May be called from several threads.

    Attributes:
        pruner: Preprocesses the inputs.
        writer: The cache; None if there is none.
        by_content: Whether to compare file contents even if size and modification time are those that the cache knows.
        load_model: Called before an input is decoded. Its errors are raised: they are not the fault of an input.
    """

    pruner: Pruner
    writer: CacheWriter | None = None
    by_content: bool = False
    load_model: Callable[[], object] = lambda: None

    def __call__(self, number: int, file: ListedFile) -> LoadedInput | CachedInput | FailedInput:
        """Loads one file; `number` is its position in the listing."""
        source = file.source
        if file.error:
            return FailedInput(source, file.error)
        try:
            stamp, data, digest, is_clip = read_stamp(source), b"", "", is_clip_file(source)
            entry = self.writer.index.find(source) if self.writer else None
            if entry and entry.stamp == stamp and not self.by_content:
                return CachedInput(source, entry)
            if not is_clip:
                data = read_bytes(source)
                digest = hash_bytes(data)
            elif entry:  # a new clip is hashed when it is decoded
                digest = hash_clip(source)
            if entry and entry.digest == digest:
                return CachedInput(source, entry, stamp if entry.stamp != stamp else None)
        except Exception as error:
            return FailedInput(source, input_error(source, error))
        self.load_model()
        try:
            if is_clip:
                self.pruner.check_clip(source)
                media = load_clip(source, self.pruner.sampling, digest, self.pruner.decoding)
            else:
                media = load_image_bytes(data, source, digest, self.pruner.min_decode_side, self.pruner.decoding)
            pixels = self.pruner.preprocess(media)
            return LoadedInput(
                number=number,
                provenance=media.provenance,
                pixels=pixels,
                stamp=stamp,
                num_images=len(pixels.layout.regions),
                nbytes=sum(tensor.nbytes for tensor in pixels.tensors.values()),
            )
        except Exception as error:
            return FailedInput(source, input_error(source, error))


def input_error(source: str, error: Exception) -> PruneSIDError:
    """The error itself if it is one of ours; else one that says that preprocessing failed."""
    if isinstance(error, PruneSIDError):
        return error
    problem = f"{source}: the image processor failed: {type(error).__name__}: {error}"
    failure = UnexpectedError(problem, f"see more with: {DEBUG_OPTION}")
    failure.__cause__ = error
    return failure
