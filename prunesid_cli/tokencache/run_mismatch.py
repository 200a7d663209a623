"""How the settings of a cache differ from those of a run, and which options continue the cache."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import Run
from prunesid_cli.types import DTYPE_NAMES

DTYPE_OPTIONS = {name: f"--dtype {option}" for option, name in DTYPE_NAMES.items()}
SPREAD_OPTIONS = {(True, False): "--dynamic", (False, True): "--fixed"}
"""(dynamic, even) -> option."""
MODEL_FIELDS = ("revision", "family", "dtype")
"""Fields that may differ merely because the model does."""
LOCAL_REVISION_PREFIX = "folder-"
"""With what the revision of a local model begins. It is computed from the files, so no option gives it."""


def describe_mismatch(old: Run, new: Run) -> str:
    """Name the first field in which two runs differ."""
    field = _differing_fields(old, new)[0]
    return f"made with {field} {getattr(old, field)}, not {getattr(new, field)}"


def mismatch_hint(old: Run, new: Run) -> str:
    """Return a hint with the options that continue the cache of `old`, for a user who ran `new`."""
    differing = _differing_fields(old, new)
    if "model" in differing:
        differing = [field for field in differing if field not in MODEL_FIELDS]
    is_local = old.revision.startswith(LOCAL_REVISION_PREFIX)
    spread = SPREAD_OPTIONS.get((old.dynamic, old.even))
    options = {
        "model": f"--model {shlex.quote(old.model)}",
        "revision": None if is_local else f"--revision {shlex.quote(old.revision)}",
        "method": f"--method {shlex.quote(old.method)}",
        "keep": f"--keep {old.keep}",
        "dynamic": spread,
        "even": spread,
        "dtype": DTYPE_OPTIONS.get(old.dtype),
        "store": f"--store {old.store}",
        "fit": f"--fit {old.fit}",
    }
    wanted = dict.fromkeys(options.get(field) for field in differing)
    if None in wanted:
        return "name another --out"
    typed = " ".join(option for option in wanted if option)
    return f"continue it with {typed}, or name another --out"


def _differing_fields(old: Run, new: Run) -> list[str]:
    return [field for field, value in asdict(old).items() if value != getattr(new, field)]


def check_settings(folder: Path, old: Run | None, old_sampling: str, new: Run, sampling: str) -> None:
    """Check that a run may continue a cache.

    Args:
        folder: The cache.
        old: Its settings; None if it has no items.
        old_sampling: How the frames of its clips were chosen; empty if it has none.
        new: The settings of the run.
        sampling: How the run chooses frames.

    Raises:
        CacheError: It may not.
    """
    if old and old != new:
        raise CacheError(f"{folder} holds a cache {describe_mismatch(old, new)}", mismatch_hint(old, new))
    if old_sampling not in ("", sampling):
        raise CacheError(f"{folder} holds clips with {old_sampling}, not {sampling}", "name another --out")
