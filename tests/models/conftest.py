from __future__ import annotations

import pytest

from prunesid_cli.models import FAMILIES, SPLICED
from tests.models.harness import QUICK_SPLICED_TYPES, VARIANTS, Model
from tests.models.tiny import tiny_model, write_checkpoint

METHODS_OF_SLOW_TYPES = ("prunesid", "prunesid-published")


@pytest.fixture(scope="session", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Every variant of every family."""
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try two methods of selection for types of the generic adapter whose laws are slow: one keeps the order of slots.

    Their halves are the same code, and a method sees nothing of them but tensors.
    """
    dropped = []
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        is_slow_generic = FAMILIES.get(params.get("model")) == SPLICED and params["model"] not in QUICK_SPLICED_TYPES
        if is_slow_generic and params.get("method") not in (None, *METHODS_OF_SLOW_TYPES):
            dropped.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
