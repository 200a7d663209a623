"""What is wrong with a checkpoint's files of weights, in words: safetensors' own errors name neither file nor cure."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from prunesid_cli.errors import ModelError
from prunesid_cli.inputs.file_type import HEADER_BYTES, FileType, detect_file_type
from prunesid_cli.models.loading.checkpoint import CONFIG_FILE, Checkpoint

LARGEST_HEADER = 100_000_000
"""safetensors' own limit, in bytes."""
REINSTALL_HINT = "download the model again, or name another revision"


def damaged(checkpoint: Checkpoint) -> ModelError | None:
    """The first of a checkpoint's safetensors that is not whole. Looks at headers and sizes alone."""
    folder = _folder(checkpoint)
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        try:
            problem, hint = _damage(path)
        except OSError as error:
            problem, hint = f"cannot be read: {error.strerror}", "check it with: ls -lL"
        if problem:
            return ModelError(f"{checkpoint.name}: {path.name} {problem}", hint)
    return None


def _folder(checkpoint: Checkpoint) -> Path | None:
    """Where the files are, of a repo in the hub's cache."""
    if checkpoint.commit is None:
        return Path(checkpoint.location)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(checkpoint.location, CONFIG_FILE, revision=checkpoint.commit)
    return Path(config).parent if isinstance(config, str) else None


def _damage(path: Path) -> tuple[str, str]:
    """What is wrong with a file and what to do, both empty where it is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        if detect_file_type(head) is FileType.LFS:
            return "is a Git LFS pointer, not the weights", "fetch the real files with: git lfs pull"
        length = struct.unpack("<Q", head[:8])[0] if size > 8 else 0
        if length > LARGEST_HEADER:
            return "is no safetensors file", REINSTALL_HINT
        file.seek(8)
        header = file.read(length)
    if size <= 8 or len(header) < length:
        return f"is cut short, to {size:,} bytes", REINSTALL_HINT
    try:
        parts = {name: part for name, part in json.loads(header).items() if name != "__metadata__"}
        whole = 8 + length + max((part["data_offsets"][1] for part in parts.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is no safetensors file", REINSTALL_HINT
    return (f"is cut short, to {size:,} of {whole:,} bytes", REINSTALL_HINT) if size < whole else ("", "")
