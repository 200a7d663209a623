"""The README's commands, run as they stand: what they print is what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from glob import glob
from pathlib import Path

import pytest

from tests.conftest import Run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.S)


def sessions() -> list[tuple[str, str]]:
    """(command, what it prints) in order, over all console blocks."""
    found = []
    for block in BLOCKS:
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed))
    return found


def test_console_blocks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    assert len(sessions()) >= 4
    for command, printed in sessions():
        program, *args = shlex.split(command)
        assert program == "prunesid"
        spread = [path for arg in args for path in (sorted(glob(arg)) if "*" in arg else [arg])]
        ran = run(*spread)
        # How long an answer takes is the one thing that differs between machines.
        said = re.sub(r'"ms": [\d.]+', '"ms": …', ran.out)
        assert (ran.code, said) == (0, printed), (command, ran.err)


def test_the_two_commands_of_a_fresh_machine() -> None:
    """They are too slow to run here (CI does what they do); that they are the right ones can be checked."""
    run_it, test_it = re.findall(r"```bash\n(.*?)```", README, re.S)
    assert re.search(r'pip install .* \. && prunesid ask samples/scene5.png "what is shown\?"$', run_it.strip())
    assert re.search(r"pip install .* -e '\.\[test\]' && python -m pytest -n 2$", test_it.strip())
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python -m pytest -n 2" in ci.splitlines()
    for path in re.findall(r"\]\((samples/\S+)\)", README):
        assert (ROOT / path).is_file()


def test_the_example_in_the_help_works(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"Example: prunesid (.*)", run("ask", "--help").out)
    ran = run(*shlex.split(example))
    assert (ran.code, ran.out) == (0, "a purple ring, the number 2 and a green ring\n")


def test_every_documented_option_exists(run: Run) -> None:
    of_prunesid = re.sub(r"`python -m [^`]*`", "", README)
    documented = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", of_prunesid))
    assert len(documented) > 3
    commands = ("ask", "compress", "answer", "show", "evaluate", "bench", "cache ls", "cache gc", "cache merge")
    known = "".join(run(*command.split(), "--help").out for command in commands)
    for option in documented:
        assert option in known, option
