"""Finds damaged safetensors files. The errors of safetensors itself name neither the file nor a remedy."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from prunesid_cli.errors import ModelError
from prunesid_cli.inputs.file_type import HEADER_BYTES, FileType, detect_file_type
from prunesid_cli.models.loading.checkpoint import CONFIG_FILE, REINSTALL_HINT, Checkpoint

MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""


def find_damaged_file(checkpoint: Checkpoint) -> ModelError | None:
    """The error for a checkpoint's first damaged safetensors file; None if none is. Reads headers and sizes only."""
    if checkpoint.commit is None:
        folder: Path | None = Path(checkpoint.location)
    else:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(checkpoint.location, CONFIG_FILE, revision=checkpoint.commit)
        folder = Path(config).parent if isinstance(config, str) else None
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        try:
            problem, hint = _find_damage(path)
        except OSError as error:
            problem, hint = f"cannot be read: {error.strerror}", "check it with: ls -lL"
        if problem:
            return ModelError(f"{checkpoint.name}: {path.name} {problem}", hint)
    return None


def _find_damage(path: Path) -> tuple[str, str]:
    """What is wrong with a file, and a hint; both are empty for an intact file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
        if detect_file_type(start) is FileType.LFS:
            return "is a Git LFS pointer, not the weights", "fetch the real files with: git lfs pull"
        header_length = struct.unpack("<Q", start[:8])[0] if size > 8 else 0
        if header_length > MAX_SAFETENSORS_HEADER_BYTES:
            return "is no safetensors file", REINSTALL_HINT
        file.seek(8)
        header = file.read(header_length)
    if size <= 8 or len(header) < header_length:
        return f"is cut short, to {size:,} bytes", REINSTALL_HINT
    try:
        tensors = [tensor for name, tensor in json.loads(header).items() if name != "__metadata__"]
        expected_size = 8 + header_length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is no safetensors file", REINSTALL_HINT
    if size < expected_size:
        return f"is cut short, to {size:,} of {expected_size:,} bytes", REINSTALL_HINT
    return "", ""
