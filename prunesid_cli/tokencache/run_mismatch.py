"""How the run that made a cache differs from another, and what to type to go on as it was made."""

from __future__ import annotations

import shlex
from dataclasses import asdict

from prunesid_cli.models.loading.checkpoint import is_local
from prunesid_cli.tokencache.format import Run

DTYPES = {"float32": "--dtype fp32", "bfloat16": "--dtype bf16", "float16": "--dtype fp16"}
SPREADS = {(True, False): "--dynamic", (False, True): "--fixed"}
"""By (dynamic, even)."""
OF_A_MODEL = ("revision", "family", "dtype")
"""What another model may have of its own accord."""


def describe_mismatch(old: Run, new: Run) -> str:
    """The first field in which two runs differ, in words."""
    field = _differing(old, new)[0]
    return f"made with {field} {getattr(old, field)}, not {getattr(new, field)}"


def mismatch_hint(old: Run, new: Run) -> str:
    """A hint to one who ran `new` where `old` was run."""
    differing, options = _differing(old, new), _options(old)
    if "model" in differing:
        differing = [field for field in differing if field not in OF_A_MODEL]
    typed = dict.fromkeys(options.get(field) for field in differing)
    said = " ".join(option for option in typed if option)
    return "name another --out" if None in typed else f"go on with {said}, as it was made, or name another --out"


def _differing(old: Run, new: Run) -> list[str]:
    before, after = asdict(old), asdict(new)
    return [field for field in before if before[field] != after[field]]


def _options(run: Run) -> dict[str, str | None]:
    """What says each field; None where nothing that is typed does: a folder's revision is what is in it."""
    spread = SPREADS.get((run.dynamic, run.even))
    return {
        "model": f"--model {shlex.quote(run.model)}",
        "revision": None if is_local(run.model) else f"--revision {shlex.quote(run.revision)}",
        "method": f"--method {shlex.quote(run.method)}",
        "keep": f"--keep {run.keep}",
        "dynamic": spread,
        "even": spread,
        "dtype": DTYPES.get(run.dtype),
        "store": f"--store {run.store}",
    }
