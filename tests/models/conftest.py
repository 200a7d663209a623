from __future__ import annotations

import pytest

from tests.models.harness import VARIANTS, Model
from tests.models.tiny import tiny_model, write_checkpoint


@pytest.fixture(scope="session", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Every variant of every family."""
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))
