"""Fixtures of all tests: the command line in this process, drawn scenes, and a tiny LLaVA checkpoint."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

# Divide the cores among the workers of pytest-xdist, before torch is imported: threads in excess slow down all of them.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

from prunesid_cli.cli import app as cli  # noqa: E402
from tests.models.tiny import write_checkpoint  # noqa: E402

PROMPT = "what is shown?"


@dataclass(frozen=True)
class CommandResult:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., CommandResult]


def isolate(monkeypatch: pytest.MonkeyPatch, config_home: Path) -> None:
    """Hide the user's configuration and model from commands, and the network from the hub's client."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config_home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PRUNESID_MODEL", raising=False)
    # Worker processes take seconds to start, too long for hundreds of commands. Tests of them choose another number.
    monkeypatch.setenv("PRUNESID_WORKERS", "0")


def run_command(*args: object, stdin: bytes | None = b"") -> CommandResult:
    """Run a command in this process: `run_command("ask", picture, "what is shown?")`. None is a closed stdin."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.argv", ["prunesid", *map(str, args)])
        patch.setattr("sys.stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.run()
    return CommandResult(int(code), out.getvalue(), err.getvalue())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run_command` with an empty configuration."""
    isolate(monkeypatch, tmp_path / "config")
    return run_command


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
    """A tiny LLaVA-1.5, for tests that do not depend on the model family."""
    return write_checkpoint("llava", tmp_path_factory.mktemp("llava"))
