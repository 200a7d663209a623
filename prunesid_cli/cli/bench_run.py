"""What a run of bench goes through: a model, pictures, a rival; and what is told of them beside the figures."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import is_flash_attn_2_available

from prunesid_cli.bench import environment as machine
from prunesid_cli.bench import report
from prunesid_cli.bench.random_models import drawn
from prunesid_cli.bench.sample_images import draw_pictures, size_of
from prunesid_cli.bench.stages import STOCK, Bench, Measured
from prunesid_cli.bench.stock_model import is_known, made_whole
from prunesid_cli.bench.timing import Meter
from prunesid_cli.cli.choices import Attention
from prunesid_cli.cli.terminal import advance_one, printer
from prunesid_cli.errors import OutOfMemory, PruneSIDError
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.prefix_lm import WITHOUT_FLASH
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Hardware, Session
from prunesid_cli.selection.budget import Budget

SCENES = 8
"""That are drawn where no pictures are given, unless a batch has more."""


@dataclass(frozen=True)
class Asked:
    """How much to measure: items at once, tokens of text and of an answer, rounds."""

    batch_sizes: Sequence[int]
    text: int
    new_tokens: int
    rounds: int


def open_session(
    shape: str | None, model: str | None, revision: str | None, hardware: Hardware, folder: Path
) -> Session:
    """With the best attention kernels that there are; folder: for what a model of random weights lacks."""
    if shape is None:
        session = Session.open(model, revision, hardware)
    else:
        session = Session.of(drawn(shape, revision, folder), hardware)
    placement = session.placement
    is_best = hardware.attention is Attention.auto and placement.dtype.itemsize == 2 and is_flash_attn_2_available()
    if is_best and placement.device.type == "cuda" and session.checkpoint.model_type not in WITHOUT_FLASH:
        placement = replace(placement, attention=Attention.flash.value)
    return replace(session, placement=placement)


def scenes(session: Session, folder: Path, asked: Asked, size: tuple[int, int] | None) -> list[str]:
    """Files of them; size: in pixels, where it is not that which the model reads."""
    count = max(SCENES, *asked.batch_sizes)
    return draw_pictures(folder, count, size or size_of(load_config(session.checkpoint)))


def prepare(session: Session, pruners: dict[str, Pruner], sources: Sequence[str], asked: Asked) -> Bench:
    """With the stock model itself as the rival, where it can be asked about the pictures."""
    language, meter = session.language(), Meter(session.placement.device)
    bench = Bench(None, pruners, language, sources, asked.text, asked.new_tokens, meter)
    media, pixels = bench.decoded(list(dict.fromkeys(sources)))
    if is_known(session.checkpoint, language, media, [one.layout for one in pixels]):
        return replace(bench, stock=made_whole(session.checkpoint, language, session.placement))
    all_kept = replace(next(iter(pruners.values())), budget=Budget.parse("all"))
    budgets = {keep: one for keep, one in pruners.items() if keep != "all"}
    return replace(bench, pruners={STOCK: all_kept, **budgets})


def measure(bench: Bench, asked: Asked) -> tuple[list[Measured], PruneSIDError | None]:
    """Batch size by batch size, until one does not fit into memory, which is the error.

    Raises:
        OutOfMemory: not even the first does.
    """
    measured: list[Measured] = []
    with printer.progress("measuring", len(asked.batch_sizes), prints=False) as bar:
        for size in asked.batch_sizes:
            try:
                measured += bench.run(size, asked.rounds)
            except OutOfMemory as error:
                if not measured:
                    raise
                return measured, error
            advance_one(bar)
    return measured, None


def about(session: Session, asked: Asked, media: Sequence[str] | str, is_stock: bool) -> dict[str, Any]:
    """All but the figures; is_stock: whether the stock model itself is the rival."""
    found, device = session.checkpoint, session.placement.device
    return {
        "command": shlex.join(["prunesid", *sys.argv[1:]]),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "machine": machine.machine(device),
        "model": {
            "name": found.name,
            "revision": found.revision,
            "model_type": found.model_type,
            "weights": report.RANDOM if found.random else "the checkpoint's",
        },
        "device": str(device),
        "dtype": session.dtype_name,
        "attention": session.placement.attention,
        "stock": report.RIVALS[is_stock],
        "media": media,
        "rounds": asked.rounds,
        "memory": Meter(device).memory,
    }
