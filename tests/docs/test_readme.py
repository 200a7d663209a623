"""The README: its commands print what it says, its options and links exist, and it stays short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.docs.markdown import ROOT, Page, check_links, check_modules, check_options, run_console_blocks

README = Page(ROOT / "README.md")


def test_console_blocks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_console_blocks(README, run, tmp_path, monkeypatch) >= 4


def test_the_two_commands_for_a_fresh_machine() -> None:
    """They are too slow to run here, and CI does the same; this checks that they are the right ones."""
    install, test = README.blocks("bash")
    assert re.search(r'pip install .* \. && prunesid ask samples/scene5.png "what is shown\?"$', install.strip())
    assert re.search(r"pip install .* -e '\.\[test\]' && python -m pytest -n 2$", test.strip())
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python -m pytest -n 2" in ci.splitlines()


def test_options_and_links_exist(run: Run) -> None:
    check_options(README, run)
    check_modules(README)
    check_links(README)


def test_links_work_on_pypi() -> None:
    assert README.links()
    assert all(link.startswith("https://") for link in README.links())


def test_it_is_short() -> None:
    assert len(README.text.splitlines()) <= 150


def test_the_example_in_the_help_works(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"Example: prunesid (.*)", run("ask", "--help").out)
    ran = run(*shlex.split(example))
    assert (ran.code, ran.out) == (0, "a purple ring, the number 2 and a green ring\n")
