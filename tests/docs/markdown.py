"""Read commands, options and links out of the Markdown pages, and run console blocks."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import pytest

from tests.conftest import Run

ROOT = Path(__file__).parents[2]
REPOSITORY_URL = "https://github.com/prunesid/prunesid"
GROUPS = ("cache", "models")
"""Commands that have commands of their own."""
EXTERNAL_MODULES = ("lmms_eval", "pip", "venv")


@dataclass(frozen=True)
class Page:
    """A Markdown file of the repository."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """The contents of the fenced blocks in one language."""
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.S | re.M)

    def sessions(self) -> Iterator[tuple[str, str]]:
        """(command, expected stdout) in order, over all console blocks."""
        for block in self.blocks("console"):
            for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
                command, _, expected = part.partition("\n")
                yield command, expected

    def commands(self, program: str) -> Iterator[list[str]]:
        """The arguments of each command that starts with `program`, in blocks and in inline code.

        A command ends at the end of its line, or at a pipe; a backslash at the end of a line continues it.
        """
        blocks = [*self.blocks("sh"), *self.blocks("bash"), *self.blocks("console")]
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        prose = re.sub(r"^```.*?^```", "", self.text, flags=re.S | re.M).replace(r"\|", "|")
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
        for line in lines + inline:
            match = re.search(rf"(?:^|[|;&$] ?|xargs ){program} (.*)", line)
            if match:
                yield _arguments(match[1])

    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)\s]+)\)", self.text)


def _arguments(command: str) -> list[str]:
    """Split at blanks up to a pipe, a semicolon, `&&` or a comment."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    arguments = []
    for token in lexer:
        if set(token) <= set("|;&"):
            break
        arguments.append(token)
    return arguments


def run_console_blocks(page: Page, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run all console blocks of a page in an empty folder that holds the samples, and compare what they print.

    "…" stands for anything.

    Returns:
        The number of commands.
    """
    shutil.copytree(ROOT / "samples", folder / "samples")
    monkeypatch.chdir(folder)
    count = 0
    for command, expected in page.sessions():
        program, *arguments = shlex.split(command)
        assert program == "prunesid"
        expanded = [path for arg in arguments for path in (sorted(glob(arg)) if "*" in arg else [arg])]
        ran = run(*expanded)
        pattern = ".*?".join(map(re.escape, expected.split("…")))  # times, for example, differ between machines
        assert ran.code == 0, (command, ran.err)
        assert re.fullmatch(pattern, ran.out, re.DOTALL), (command, ran.out)
        count += 1
    return count


def check_options(page: Page, run: Run) -> None:
    """Every option of a `prunesid` command, and every option named in the prose, is in the help of a command."""
    helps: dict[str, str] = {}

    def help_of(command: str) -> str:
        if command not in helps:
            ran = run(*command.split(), "--help")
            assert ran.code == 0, (command, ran.err)
            helps[command] = ran.out
        return helps[command]

    for arguments in page.commands("prunesid"):
        if arguments[0].startswith("-"):
            continue
        command = " ".join(arguments[:2]) if arguments[0] in GROUPS and len(arguments) > 1 else arguments[0]
        for argument in arguments:
            if re.match(r"-{1,2}[A-Za-z]", argument):
                option = argument.partition("=")[0]
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(command)), (command, option)
    everything = "".join(map(help_of, ("ask", "compress", "answer", "show", "evaluate", "bench")))
    everything += "".join(map(help_of, ("cache ls", "cache gc", "cache merge", "cache verify", "cache info")))
    for option in re.findall(r"`(--[a-z][a-z-]+)[^`]*`", page.text):
        assert re.search(rf"{option}(?![\w-])", everything), option


def check_modules(page: Page) -> None:
    """Every `python -m MODULE` exists, and its options are in its source."""
    for module, *arguments in page.commands("python -m"):
        if module.partition(".")[0] in (*EXTERNAL_MODULES, "pytest"):
            continue
        spec = importlib.util.find_spec(module)
        assert spec and spec.origin, module
        source = Path(spec.origin).read_text(encoding="utf-8")
        for argument in arguments:
            if argument.startswith("--"):
                assert f'"{argument}"' in source, (module, argument)


def check_links(page: Page) -> None:
    """Links within the repository, and paths in inline code, name files and headings that exist."""
    for path in re.findall(r"`((?:tests|samples|prunesid_cli)/[\w./*-]+)`", page.text):
        assert "KIND" in path or "NAME" in path or any(ROOT.glob(path)), path
    for link in page.links():
        target, _, heading = link.partition("#")
        raw = target.replace(
            "https://raw.githubusercontent.com/prunesid/prunesid/main/", f"{REPOSITORY_URL}/blob/main/"
        )
        if raw.startswith(f"{REPOSITORY_URL}/blob/main/"):
            path = ROOT / raw.removeprefix(f"{REPOSITORY_URL}/blob/main/")
        elif target.startswith(("https://", "http://")):
            continue
        else:
            path = (page.path.parent / target) if target else page.path
        assert path.exists(), link
        if heading:
            assert heading in map(_anchor, re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.M)), link


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
