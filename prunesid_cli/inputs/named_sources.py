"""Which of some sources a user has named, by files, folders and globs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.glob_paths import expand_glob, is_glob
from prunesid_cli.inputs.source import FileSource


def select_named(sources: Sequence[str], paths: Iterable[str], files: FileSource = FILES) -> list[str]:
    """Select the sources that paths name: the path itself, or a file in a folder or below it.

    A source need not exist. `..` and links to folders in it are resolved, so nothing outside of a folder is in it.

    Args:
        sources: Paths, for example those that a cache lists as failed.
        paths: Files, folders and globs, as the user typed them.
        files: Where the paths lead.
    """
    named = set[str]()
    for path in paths:
        named.add(path)
        if is_glob(path) and not files.exists(path):
            named.update(expand_glob(path, files))
    real_paths = {files.real_path(path) for path in named}

    def is_named(source: str) -> bool:
        folder = files.real_path(os.path.dirname(source) or ".")
        ancestors = {folder}
        while (parent := os.path.dirname(folder)) != folder:
            ancestors.add(folder := parent)
        return not ancestors.isdisjoint(real_paths)

    return [source for source in sources if source in named or ("\0" not in source and is_named(source))]
