"""The guides: console blocks print what they say, Python blocks run, options and links exist, tables are complete."""

from __future__ import annotations

import io
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from prunesid_cli.models import FAMILIES
from prunesid_cli.selection import METHODS
from tests.conftest import Run
from tests.docs.markdown import ROOT, Page, check_links, check_modules, check_options, run_console_blocks

GUIDES = {path.stem: Page(path) for path in sorted((ROOT / "samples" / "guides").glob("*.md"))}
OTHER_PAGES = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "prunesid_cli/demo/model/README.md",
    "samples/benchmark/README.md",
    "samples/benchmark/lmms-eval.md",
    "tests/benchmarks/README.md",
    "tests/data/golden/README.md",
)
SLOW_GUIDES = ("evaluation",)
WITH_CONSOLE_BLOCKS = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW_GUIDES else ())
    for name, page in GUIDES.items()
    if page.blocks("console")
]


@pytest.mark.parametrize("name", WITH_CONSOLE_BLOCKS)
def test_console_blocks(name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_console_blocks(GUIDES[name], run, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", GUIDES)
def test_options_and_links_exist(name: str, run: Run) -> None:
    check_options(GUIDES[name], run)
    check_modules(GUIDES[name])
    check_links(GUIDES[name])


@pytest.mark.parametrize("path", OTHER_PAGES)
def test_other_pages(path: str) -> None:
    check_modules(Page(ROOT / path))
    check_links(Page(ROOT / path))


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Python block runs after those before it and prints the text block that follows it."""
    text = GUIDES["python"].text
    examples = re.findall(r"^```python\n(.*?)^```\n+(?:```text\n(.*?)^```)?", text, re.S | re.M)
    assert examples
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code, expected in examples:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "python.md", "exec"), names)
        assert printed.getvalue() == expected, code


def test_contributing_names_what_exists() -> None:
    """Every path and every identifier in CONTRIBUTING is in the repository. KIND and NAME are placeholders."""
    text = re.sub(r"^```bash.*?^```", "", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.S | re.M)
    sources = [*ROOT.glob("prunesid_cli/**/*.py"), *ROOT.glob("tests/**/*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for name in re.findall(r"`([\w./]+)`", text):
        if "KIND" in name or "NAME" in name:
            continue
        if "/" in name:
            assert any((ROOT / folder / name).exists() for folder in ("", "prunesid_cli", "prunesid_cli/models")), name
        else:
            last = name.removesuffix(".py").split(".")[-1]
            assert (
                (ROOT / name).exists()
                or re.search(rf"\b{re.escape(last)}\b", code)
                or any(path.name == name for path in sources)
            ), name


def rows(page: Page) -> str:
    return "\n".join(line for line in page.text.splitlines() if line.startswith("|"))


def test_the_tables_name_every_method_and_family() -> None:
    methods, models = rows(GUIDES["choosing-tokens"]), rows(GUIDES["models"])
    assert all(f"`{method}`" in methods for method in METHODS)
    assert all(f"`{family}`" in models for family in FAMILIES)
