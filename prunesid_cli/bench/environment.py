"""What measurements depend on besides the command: machine, package versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prunesid_cli import __version__

REPOSITORY = Path(__file__).parents[2]
CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the names of the processor, the GPU and the system; `threads` are those of torch on the CPU."""
    machine: dict[str, Any] = {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    machine["system"] = platform.platform()
    return machine


def package_versions() -> dict[str, str]:
    """Return the versions of this package and what it runs on; `cuda` is the one that torch was built for, if any."""
    versions = {
        "prunesid": __version__,
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }
    if torch.version.cuda:
        versions["cuda"] = str(torch.version.cuda)
    return versions


def git_commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` if files were changed; None outside a checkout."""
    if not (REPOSITORY / ".git").exists():
        return None
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of another user; the version is known anyway
        return None


def _cpu_name() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
