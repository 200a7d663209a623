"""What all tests share: the command line run in this process, drawn scenes, and tiny checkpoints."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

# Processes that share the cores share them out, or each would wait for all others; before torch is imported.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

from prunesid_cli.cli import app as cli  # noqa: E402
from tests.models.tiny import write  # noqa: E402

PROMPT = "what is shown?"


@dataclass(frozen=True)
class CommandResult:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., CommandResult]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run("ask", picture, "what is shown?", stdin=b"")` -> exit code, stdout, stderr."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PRUNESID_MODEL", raising=False)

    def call(*args: object, stdin: bytes = b"") -> CommandResult:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr("sys.argv", ["prunesid", *map(str, args)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with redirect_stdout(out), redirect_stderr(err):
            code = cli._run()
        return CommandResult(int(code), out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten held-out scenes, as PNG files in one folder."""
    from PIL import Image

    from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene

    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"scene{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        Image.fromarray(draw(make_scene(HELD_OUT, i)).pixels).save(path)
    return paths


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny LLaVA-1.5, for what does not depend on the family."""
    return write("llava", tmp_path_factory.mktemp("llava"))
