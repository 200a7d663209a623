"""The rules of the house that a machine can check: rooms, import directions, and the length of the way through it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prunesid_cli"
LAYERS = (
    ("errors", "types", "text"),
    ("runtime",),
    ("inputs", "selection", "tokencache", "demo"),
    ("models",),
    ("pipeline",),
    ("bench", "evaluate", "visualization", "integrations"),
    ("report",),
    ("cli",),
)
"""Rooms, from the lowest layer to the highest. A room imports no room of a higher layer."""
MAX_FUNCTIONS, MAX_FUNCTIONS_PER_PICTURE, MAX_DEPTH = 315, 140, 18
"""Functions that a run of compress on one picture calls, those that every further picture calls again, and the depth of
their calls. Lower them when they fall. A slow run calls a few more: those that save what is unsaved for a second."""


@cache
def imports(path: Path) -> tuple[str, ...]:
    """The modules of the package that a file imports, at any place."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("prunesid_cli"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def test_the_root_has_five_modules() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py", "__main__.py", "errors.py", "types.py", "text.py"
    }  # fmt: skip


def test_no_room_imports_a_higher_one() -> None:
    rank = {name: number for number, names in enumerate(LAYERS) for name in names}
    found = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} | {"errors", "types", "text"}
    assert found == set(rank)
    upward = [
        f"{module} imports {name}"
        for module, path in modules()
        for name in imports(path)
        if room(module) in rank and room(name) in rank and rank[room(name)] > rank[room(module)]
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    """Also where an import stands in a function, or is there for types alone."""
    known = dict(modules())
    graph = {module: set[str]() for module in known}
    for module, path in known.items():
        for name in imports(path):
            while name not in known:
                name = name.rpartition(".")[0]
            if name not in (module, "prunesid_cli"):  # the version comes from the root, which names modules as text
                graph[module].add(name)
    finished, path_now = set[str](), list[str]()

    def visit(module: str) -> None:
        if module in path_now:
            pytest.fail(" -> ".join([*path_now[path_now.index(module) :], module]))
        if module not in finished:
            path_now.append(module)
            for other in sorted(graph[module]):
                visit(other)
            finished.add(path_now.pop())

    for module in graph:
        visit(module)


@pytest.mark.slow
def test_one_picture_runs_through_few_functions() -> None:
    code = (
        "from tests.benchmarks.flow import called_for_each_picture, trace_compress; "
        "one = trace_compress(1); each = called_for_each_picture(one, trace_compress(5)); "
        "print(len(one.functions), len(each), one.depth)"
    )
    # Two threads: with one, the selection of each image runs in the main thread, below all other calls.
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    functions, for_each_picture, depth = map(int, done.stdout.split())
    assert 0 < functions <= MAX_FUNCTIONS
    assert 0 < for_each_picture <= MAX_FUNCTIONS_PER_PICTURE
    assert depth <= MAX_DEPTH
