"""Turns listed files into inputs of the vision tower. A file that cannot be read gives a record, not an exception."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from prunesid_cli.errors import PruneSIDError, UnexpectedError
from prunesid_cli.inputs.decoding import Decoding, picture_limit
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.image import Media, hash_bytes, load_image_bytes, read_bytes
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.inputs.video.load import ended_error, hash_clip, is_clip_file, load_clip, read_clip
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.results import CachedInput, CopiedInput, FailedInput
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.unchanged import read_stamp
from prunesid_cli.pipeline.workers import WorkerSetup
from prunesid_cli.runtime.worker_pool import WorkerEnded, WorkerPool, working_folder
from prunesid_cli.runtime.worker_server import end_after
from prunesid_cli.text import DEBUG_OPTION
from prunesid_cli.tokencache import CacheWriter, Stamp
from prunesid_cli.types import Columns, Pixels, Placement, Provenance

PICTURE_GRACE_SECONDS = 5.0
"""How much longer than the limit a worker may take for a picture. Most decoders notice the limit themselves."""


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
class DecodeRequest:
    """A file to decode.

    Attributes:
        number: Its position in the listing, from 0.
        source: Its path.
        stamp: Size and modification time.
        known_digest: It is not decoded if its contents have this digest.
        columns: What is known of it beside.
    """

    number: int
    source: str
    stamp: Stamp | None
    known_digest: str = ""
    columns: Columns = ()


LoadResult = LoadedInput | CachedInput | CopiedInput | FailedInput
Decode = Callable[[DecodeRequest], "LoadedInput | CachedInput | FailedInput | None"]
"""Reads, decodes and preprocesses a file; None if its contents have the known digest. Thread-safe."""


@dataclass(frozen=True)
class InputLoader:
    """Loads the inputs that a cache does not hold. May be called from several threads.

    Attributes:
        decode: Decodes a file, in this process or in a worker.
        writer: The cache; None if there is none.
        by_content: Whether to compare file contents even if size and modification time are those that the cache knows.
    """

    decode: Decode
    writer: CacheWriter | None = None
    by_content: bool = False

    def __call__(self, number: int, file: ListedFile) -> LoadResult:
        """Loads one file; `number` is its position in the listing."""
        source = file.source
        if file.error:
            return FailedInput(source, file.error)
        stamp, entry = read_stamp(source, file.columns), self.writer.index.find(source) if self.writer else None
        if entry and entry.stamp == stamp and not self.by_content:
            return CachedInput(source, entry)
        try:
            columns = file.columns or FILES.columns(source)
        except (OSError, ValueError):  # decoding it reports the error
            columns = ()
        if not (self.writer and entry):
            return self.decode(DecodeRequest(number, source, stamp, "", columns))  # type: ignore[return-value]
        # If what a table says has changed, the input is a copy of itself with other columns.
        has_changed = bool(columns) and self.writer.read_item(entry.position).columns != columns
        request = DecodeRequest(number, source, stamp, "" if has_changed else entry.digest, columns)
        return self.decode(request) or CachedInput(source, entry, stamp if entry.stamp != stamp else None)


def decode_input(
    pruner: Pruner, request: DecodeRequest, load_clip: Callable[..., Media] = load_clip
) -> LoadedInput | FailedInput | None:
    """Decodes a file in this process; see `Decode`.

    Args:
        pruner: Preprocesses the input.
        request: The file.
        load_clip: Decodes a clip.
    """
    source, data = request.source, b""
    try:
        is_clip = is_clip_file(source)
        if is_clip:
            digest = hash_clip(source) if request.known_digest else ""  # a new clip is hashed when it is decoded
        else:
            data = read_bytes(source)
            digest = hash_bytes(data)
    except Exception as error:
        return FailedInput(source, input_error(source, error))
    if digest and digest == request.known_digest:
        return None
    pruner.load_vision()  # its errors are not those of an input
    try:
        if is_clip:
            pruner.check_clip(source)
            media = load_clip(source, pruner.sampling, digest, pruner.decoding)
        else:
            limit = picture_limit(pruner.decoding)
            end_after(limit + PICTURE_GRACE_SECONDS if limit else 0)
            media = load_image_bytes(data, source, digest, pruner.min_decode_side, pruner.decoding)
        pixels = pruner.preprocess(media)
    except Exception as error:
        return FailedInput(source, input_error(source, error))
    return LoadedInput(
        number=request.number,
        provenance=replace(media.provenance, columns=request.columns),
        pixels=pixels,
        stamp=request.stamp,
        num_images=len(pixels.layout.regions),
        nbytes=sum(tensor.nbytes for tensor in pixels.tensors.values()),
    )


def input_error(source: str, error: Exception) -> PruneSIDError:
    """The error itself if it is one of ours; else one that says that preprocessing failed."""
    if isinstance(error, PruneSIDError):
        return error
    problem = f"{source}: the image processor failed: {type(error).__name__}: {error}"
    failure = UnexpectedError(problem, f"see more with: {DEBUG_OPTION}")
    failure.__cause__ = error
    return failure


def decode_in_worker(
    pool: WorkerPool, decoding: Decoding, request: DecodeRequest, folder: str = ""
) -> LoadedInput | FailedInput | None:
    """Decodes a file in a worker process; see `Decode`. Its path is relative to `folder`, as of `WorkerPool.call`."""
    try:
        return pool.call(request, folder)  # type: ignore[no-any-return]
    except WorkerEnded as ended:
        return FailedInput(request.source, ended_error(request.source, ended.exit_code, decoding))


def input_decoder(pruner: Pruner, pool: WorkerPool | None) -> Decode:
    """How inputs are decoded: in the workers of a pool, or in this process."""
    if pool is None:
        return partial(decode_input, pruner)
    return partial(decode_in_worker, pool, pruner.decoding, folder=working_folder())


def make_decoder(setup: WorkerSetup) -> Decode:
    """What a worker process does. It has a vision half without weights, which preprocesses as any other."""
    torch.set_num_threads(1)
    # Tensors travel as arrays, whose bytes a worker puts into shared memory.
    copyreg.pickle(Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))
    placement = Placement(torch.device("meta"), torch.float32, None)
    pruner = Session(setup.checkpoint, placement, setup.settings).pruner()
    pruner = replace(pruner, downscale=setup.downscale)
    return lambda request: decode_input(pruner, request, read_clip)
