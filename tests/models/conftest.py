from __future__ import annotations

import pytest

from tests.models.harness import NESTED_CHOICES, VARIANTS, Model, is_slow
from tests.models.tiny import tiny_model, write_checkpoint

PARAMETERS_OF_SLOW_VARIANTS = {"method": ("prunesid", "prunesid-published"), "choices": (NESTED_CHOICES,)}
"""Parameters of laws -> the values with which slow variants are tried."""


@pytest.fixture(scope="session", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Every variant of every family."""
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try variants whose laws are slow with few parameters; a variant of each family is tried with all.

    A method of selection sees nothing of a variant but tensors; one of the two keeps the order of slots. All tests of a
    variant run in one worker of pytest-xdist (`--dist loadgroup`), so its checkpoint is made once.
    """
    dropped = set()
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "model" not in params:
            continue
        item.add_marker(pytest.mark.xdist_group(params["model"]))
        tried = PARAMETERS_OF_SLOW_VARIANTS
        if is_slow(params["model"]) and any(params.get(name, tried[name][0]) not in tried[name] for name in tried):
            dropped.add(item)
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]
