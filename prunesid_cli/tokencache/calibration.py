"""What typical images hold, so that one alone can be given its share (Eq. 7): measured once, carried by a cache."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.format import CALIBRATION, canonical
from prunesid_cli.tokencache.reader import open_cache

QUANTILES = 100


@dataclass(frozen=True)
class Calibration:
    """Information (1 - rho) of images as the tower of this model sees them: of how many, their mean `phi`, and `values`
    in rising order: of each, or their quantiles where they are more than QUANTILES."""

    model: str
    revision: str
    images: int
    phi: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, model: str, revision: str, values: Sequence[float]) -> Calibration:
        ordered, count = sorted(values), min(len(values), QUANTILES)
        some = tuple(ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count))
        return cls(model, revision, len(values), math.fsum(values) / len(values), some)


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Put it into a cache, which need not hold anything else, in the place of an earlier one.

    Raises:
        CacheError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = canonical(asdict(calibration)) + "\n"
        write_atomically(folder / CALIBRATION, lambda beside: beside.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise CacheError(f"cannot write to {folder}: {error.strerror}", hint="name another --out") from error


def read_calibration(folder: Path) -> Calibration | None:
    """The one that a cache carries, where it does.

    Raises:
        CacheError: it cannot be read.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    try:
        found = Calibration(**json.loads(path.read_text(encoding="utf-8")))
        if not found.values or not all(0 <= value <= 2 for value in found.values):
            raise ValueError("no sensible numbers")
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(f"cannot read {path}: {error}", f"delete {path}, or calibrate again") from error
    return found


def calibration_sample(folder: Path, model: str, revision: str) -> tuple[float, ...]:
    """The information of typical images, where a cache carries a calibration.

    Raises:
        CacheError: it cannot be read, or was measured with another model.
    """
    found = read_calibration(folder)
    if found:
        _check(folder, (found.model, found.revision), (model, revision))
    return found.values if found else ()


def information_sample(folder: Path, model: str, revision: str) -> tuple[float, ...]:
    """The information of typical images: as a cache was calibrated, else of those that it holds.

    Raises:
        CacheError: there is no such cache, it is another model's, or it holds nothing.
    """
    cache = open_cache(folder)
    values = calibration_sample(folder, model, revision)
    if values:
        return values
    if cache.run is None:
        raise CacheError(f"{folder} holds no images", hint=_hint(folder))
    _check(folder, (cache.run.model, cache.run.revision), (model, revision))
    return tuple(cache.index.table.phi.tolist())


def _check(folder: Path, measured: tuple[str, str], own: tuple[str, str]) -> None:
    for what, theirs, ours in zip(("model", "revision"), measured, own, strict=True):
        if theirs != ours:
            raise CacheError(f"{folder} was measured with {what} {theirs}, not {ours}", hint=_hint(folder))


def _hint(folder: Path) -> str:
    return f"measure images with this model: prunesid compress IMAGES --calibrate --out {folder}"
