"""Answer questions about many images and clips with a vision-language model, from the few visual tokens that matter.

    from prunesid_cli import load

    model = load("demo", keep="11%")
    print(model.ask("samples/scene5.png", "what is shown?").text)

Names are imported on first use: importing the package imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunesid_cli.pipeline.model import Model, load
    from prunesid_cli.selection import METHODS, select
    from prunesid_cli.selection.budget import Budget
    from prunesid_cli.tokencache import open_cache

__version__ = "0.1.0"
__all__ = ["METHODS", "Budget", "Model", "__version__", "load", "open_cache", "select"]

LAZY_MODULES = {
    "METHODS": "selection",
    "Budget": "selection.budget",
    "Model": "pipeline.model",
    "load": "pipeline.model",
    "open_cache": "tokencache",
    "select": "selection",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in LAZY_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{LAZY_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
