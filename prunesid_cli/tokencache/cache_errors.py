"""The errors that several modules of the cache raise, each with a hint."""

from __future__ import annotations

import errno
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import shard_name

NO_FILE_ERRORS = (errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EPERM)
"""What the system, or `cache_file`, says of a folder, a link or a pipe that has the name of a file."""


def read_error(path: Path, error: Exception, hint: str = "check it with: ls -l") -> CacheError:
    """The error for a file that cannot be read, or whose contents cannot be right."""
    hint = f"move {path} away" if getattr(error, "errno", None) in NO_FILE_ERRORS else hint
    return CacheError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint)


def write_error(path: Path, error: OSError) -> CacheError:
    """The error for a file that the system cannot write."""
    hint = "free some space, then run the same command"
    hint = f"move {path} away" if error.errno in NO_FILE_ERRORS else hint
    return CacheError(f"cannot write {path}: {error.strerror or error}", hint)


def damaged_item(path: Path, source: str) -> CacheError:
    """The error for an item of a shard whose rows do not match its checksum."""
    return CacheError(f"the tokens of {source} in {path} are damaged", repair_hint(path))


def mixed_runs(path: Path, first: Path) -> CacheError:
    """The error for a shard that was made with other settings than the first shard."""
    return CacheError(f"{path} is of another run than {first.name}", "move it elsewhere")


def misplaced_shard(path: Path, number: int) -> CacheError:
    """The error for a shard whose name does not have the number in its header."""
    original = path.with_name(shard_name(number))
    if original.exists():
        return CacheError(f"{path} is a copy of {original.name}", f"delete {path}")
    return CacheError(f"{path} is {original.name} under another name", f"rename it to {original.name}")


def repair_hint(path: Path) -> str:
    """What to type when a shard is damaged."""
    return f"delete {path} and run the same compress again"
