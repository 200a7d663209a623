"""The plug-in for lmms-eval: `--model prunesid`.

lmms-eval finds it by the entry point of pyproject.toml. Nothing here is imported before it asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """What lmms-eval lists. The class takes its plain requests: a text, and pictures or clips."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="prunesid", simple_class_path="prunesid_cli.integrations.lmms_eval.model.PruneSID")
