from __future__ import annotations

import pytest

from tests.models.harness import NESTED_CHOICES, VARIANTS, Model, is_slow
from tests.models.tiny import tiny_model, write_checkpoint

FEW_PARAMETERS = {"method": ("prunesid", "prunesid-published"), "choices": (NESTED_CHOICES,)}
"""Parameters of laws -> the values with which all variants are tried."""
VARIANTS_OF_ALL_PARAMETERS = ("llava", "qwen3_vl")
"""Variants that are tried quickly with all values: with a CLS token and without one."""
COSTLY_LAWS = (
    "test_prompts_of_a_list_get_the_answers_of_single_prompts",
    "test_asking_is_compressing_then_answering",
    "test_special_tokens_of_a_prompt_are_text",
)
VARIANTS_OF_COSTLY_LAWS = ("internvl", "llava", "llava_next", "mgm", "paligemma", "qwen3_vl")
"""Variants with which the laws above are tried quickly: these take long, and see little of a family."""


@pytest.fixture(scope="session", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Every variant of every family."""
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try variants whose laws are slow with few parameters; a variant of each family is tried with all, mostly slowly.

    A method of selection sees nothing of a variant but tensors; one of the two keeps the order of slots. All tests of a
    variant run in one worker of pytest-xdist (`--dist loadgroup`), so its checkpoint is made once.
    """
    dropped = set()
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "model" not in params:
            continue
        if item.originalname in COSTLY_LAWS and params["model"] not in VARIANTS_OF_COSTLY_LAWS:
            item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.xdist_group(params["model"]))
        if all(params.get(name, few[0]) in few for name, few in FEW_PARAMETERS.items()):
            continue
        if is_slow(params["model"]):
            dropped.add(item)
        elif params["model"] not in VARIANTS_OF_ALL_PARAMETERS:
            item.add_marker(pytest.mark.slow)
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]
