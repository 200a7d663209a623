"""Plug-in for lmms-eval: `--model prunesid`.

lmms-eval finds it by the entry point in pyproject.toml. Nothing else is imported until lmms-eval asks for the manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return the manifest of the model. Its class takes "simple" requests: a text with pictures or clips."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="prunesid", simple_class_path="prunesid_cli.integrations.lmms_eval.model.PruneSID")
