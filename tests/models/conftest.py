from __future__ import annotations

import pytest

from tests.models.harness import VARIANTS, Model, is_slow
from tests.models.tiny import tiny_model, write_checkpoint

METHODS_OF_SLOW_VARIANTS = ("prunesid", "prunesid-published")


@pytest.fixture(scope="session", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Every variant of every family."""
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try two methods of selection for variants whose laws are slow: one of them keeps the order of slots.

    A method sees nothing of a variant but tensors, and a variant of each family is tried with all methods. All tests of
    a variant run in one worker of pytest-xdist (`--dist loadgroup`), so its checkpoint is made once.
    """
    dropped = set()
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "model" not in params:
            continue
        item.add_marker(pytest.mark.xdist_group(params["model"]))
        if is_slow(params["model"]) and params.get("method") not in (None, *METHODS_OF_SLOW_VARIANTS):
            dropped.add(item)
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]
