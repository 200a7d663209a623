"""Every benchmark can be imported and parses its command line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = [path.stem for path in Path(__file__).parent.glob("*.py") if "add_argument" in path.read_text("utf-8")]
SCRIPTS.remove(Path(__file__).stem)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"tests.benchmarks.{name}").main()
    assert (stop.value.code, "usage: " in capsys.readouterr().out) == (0, True)
