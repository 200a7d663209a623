"""Calibration: the information of typical images, with which single images get their share of a budget (Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.text import calibrate_command
from prunesid_cli.tokencache.cache_errors import read_error
from prunesid_cli.tokencache.cache_file import build_record, parse_json, read_file
from prunesid_cli.tokencache.format import CALIBRATION, MAX_PHI, MIN_PHI, canonical_json
from prunesid_cli.tokencache.reader import open_cache

MAX_QUANTILES = 100
MAX_CALIBRATION_BYTES = 1 << 20


@dataclass(frozen=True)
class Calibration:
    """The information, 1 - rho, of some images, as the vision tower of one model sees them.

    Attributes:
        model: The model.
        revision: Its revision.
        images: How many images were measured.
        phi: Their mean information.
        values: The information of each in rising order; of more than `MAX_QUANTILES` images, quantiles of it.
    """

    model: str
    revision: str
    images: int
    phi: float
    values: tuple[float, ...]

    @classmethod
    def from_values(cls, model: str, revision: str, values: Sequence[float]) -> Calibration:
        """Summarise the information of some images."""
        ordered, count = sorted(values), min(len(values), MAX_QUANTILES)
        quantiles = tuple(ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count))
        return cls(
            model=model,
            revision=revision,
            images=len(values),
            phi=math.fsum(values) / len(values),
            values=quantiles,
        )


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write the calibration of a cache, which need not hold anything else. An earlier one is replaced.

    Raises:
        CacheError: The folder cannot be written.
    """
    text = canonical_json(asdict(calibration)) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CALIBRATION, lambda file: file.write(text.encode()))
    except OSError as error:
        raise CacheError(f"cannot write to {folder}: {error.strerror}", "name another --out") from error


def read_calibration(folder: Path) -> Calibration | None:
    """Read the calibration of a cache, if it has one.

    Raises:
        CacheError: It cannot be read.
    """
    path = folder / CALIBRATION
    try:
        data = read_file(path, MAX_CALIBRATION_BYTES)
        if data is None:
            return None
        calibration = build_record(parse_json(data), Calibration)
        all_phi = (calibration.phi, *calibration.values)
        if not (calibration.images > 0 and calibration.values and all(MIN_PHI <= phi <= MAX_PHI for phi in all_phi)):
            raise ValueError("its values are not between 0 and 2")
    except (OSError, ValueError) as error:
        raise read_error(path, error, f"delete {path}, or calibrate again") from error
    return calibration


def calibration_sample(folder: Path, model: str, revision: str) -> tuple[float, ...]:
    """Return the calibrated information of typical images; empty if the cache has no calibration.

    Raises:
        CacheError: It cannot be read, or was measured with another model.
    """
    calibration = read_calibration(folder)
    if calibration is None:
        return ()
    _check_model(folder, calibration.model, calibration.revision, model, revision)
    return calibration.values


def information_sample(folder: Path, model: str, revision: str) -> tuple[float, ...]:
    """Return the information of typical images: as a cache was calibrated, or else of the images that it holds.

    Raises:
        CacheError: There is no such cache, it was made with another model, or it holds nothing.
    """
    cache = open_cache(folder)
    values = calibration_sample(folder, model, revision)
    if values:
        return values
    if cache.run is None:
        raise CacheError(f"{folder} holds no images", _calibration_hint(folder))
    _check_model(folder, cache.run.model, cache.run.revision, model, revision)
    return tuple(cache.index.table.phi.tolist())


def _check_model(folder: Path, measured_model: str, measured_revision: str, model: str, revision: str) -> None:
    for name, measured, wanted in (("model", measured_model, model), ("revision", measured_revision, revision)):
        if measured != wanted:
            problem = f"{folder} was measured with {name} {measured}, not {wanted}"
            raise CacheError(problem, _calibration_hint(folder))


def _calibration_hint(folder: Path) -> str:
    return f"measure images with this model: {calibrate_command(folder)}"
