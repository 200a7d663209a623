"""What figures depend on beside the program: the machine, versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prunesid_cli import __version__

ROOT = Path(__file__).parents[2]


def machine(device: torch.device) -> dict[str, Any]:
    """threads: that torch computes with on a CPU."""
    found: dict[str, Any] = {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found | {"system": platform.platform()}


def versions() -> dict[str, str]:
    """cuda: what torch was built for, where it was."""
    found = {"prunesid": __version__, "torch": str(torch.__version__), "transformers": version("transformers")}
    cuda = {"cuda": str(torch.version.cuda)} if torch.version.cuda else {}
    return found | {"python": platform.python_version()} | cuda


def commit() -> str | None:
    """Of the checkout that this program is run from, with `-dirty` where something was changed; None: of none."""
    if not (ROOT / ".git").exists():
        return None
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or not one's own checkout: the version is told anyway
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
