"""Fixtures of the tests of the command line: a configuration file, folders of scenes, a cache and its prompts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.helpers import write_jsonl
from tests.conftest import isolate, run_command

LONG_AGO = 1_600_000_000
"""A modification time, in seconds, far enough in the past that compress trusts it."""
QUESTIONS = [
    "what is shown?",
    "count",
    "is there a star in it, and of which colour is that then?",
    "what is <image> then?",
]
SHORT = ("--max-new-tokens", "4")


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the configuration file that `run` reads -> its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config" / "prunesid" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path) -> Path:
    """Ten scenes whose files were last modified long ago."""
    shutil.copytree(pictures[0].parent, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return tmp_path / "in"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> list[Path]:
    """Five scenes: three in a folder `a`, two in a folder `b`."""
    folder = tmp_path_factory.mktemp("answer")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    return [Path(shutil.copy(path, folder / "ab"[i > 2])) for i, path in enumerate(pictures[:5])]


@pytest.fixture(scope="module")
def original_scene_cache(llava: Path, scenes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, folder / "config")
        assert run_command("compress", *scenes, "-m", llava, "--out", folder / "c").code == 0
    return folder / "c"


@pytest.fixture
def scene_cache(original_scene_cache: Path, tmp_path: Path) -> Path:
    """A cache of the five scenes, which the test may change."""
    return shutil.copytree(original_scene_cache, tmp_path / "c")


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """A prompt file with the four questions, each about all items."""
    return write_jsonl(tmp_path / "prompts.jsonl", *({"prompt": text} for text in QUESTIONS))
