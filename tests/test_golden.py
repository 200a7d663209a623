"""Selection agrees with the published implementation, stage by stage, on stored cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.golden import check, main

DIRECTORY = Path(os.environ.get("PRUNESID_GOLDEN", Path(__file__).parent / "data" / "golden"))
CASES = sorted(DIRECTORY.glob("*.safetensors"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_stage_is_as_published(path: Path) -> None:
    wrong, _ = check(path)
    assert wrong == []


def test_there_are_cases() -> None:
    assert CASES


def test_an_unreadable_case_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"


def test_a_changed_case_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison can fail: swap two kept tokens of a stored result."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(CASES[0], "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
    tensors["indices"] = tensors["indices"].flip(-1).contiguous()
    save_file(tensors, tmp_path / "changed.safetensors", metadata)
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"
