"""The device, dtype and attention kernel that a half of a model runs with."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import PretrainedConfig

from prunesid_cli.errors import UsageError
from prunesid_cli.types import DTYPE_NAMES, Placement


def choose_placement(device: str, dtype: str, attention: str, config: PretrainedConfig) -> Placement:
    """Resolve the user's choices of device, dtype and attention. Each may be "auto".

    Args:
        device: A device that torch knows, like "cpu" or "cuda:0". "auto" takes the fastest kind of device, and lets
            the language model spread over all GPUs if accelerate is installed.
        dtype: "bf16", "fp16" or "fp32". "auto" takes float32 on a CPU; elsewhere the checkpoint's own half precision,
            or bf16 if it is not stored in half precision.
        attention: An attention implementation of transformers; "auto" lets it choose for each part of a model: SDPA
            where the part supports it.
        config: The checkpoint's configuration.

    Raises:
        UsageError: torch has no such device.
    """
    chosen_device = _find_device(device)
    if dtype != "auto":
        chosen_dtype = getattr(torch, DTYPE_NAMES[dtype])
    elif chosen_device.type == "cpu":
        chosen_dtype = torch.float32
    else:
        stored_dtype = getattr(config, "dtype", None)
        chosen_dtype = stored_dtype if stored_dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    return Placement(
        device=chosen_device,
        dtype=chosen_dtype,
        attention=None if attention == "auto" else attention,
        multi_gpu=device == "auto" and torch.cuda.device_count() > 1 and find_spec("accelerate") is not None,
    )


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("the meta device holds no data")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _device_error(name) from error
    return device


def _device_error(name: str) -> UsageError:
    """Why torch has no such device."""
    kind, count = name.partition(":")[0], torch.cuda.device_count()
    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return UsageError(
            f"--device {name}: the installed torch {torch.__version__} is built for CPUs only",
            "install one for your GPU: https://pytorch.org/get-started/locally; or --device cpu",
        )
    if kind == "cuda" and not count:
        return UsageError(
            f"--device {name}: torch finds no GPU, or no driver for it",
            "check that nvidia-smi lists the GPU; or --device cpu",
        )
    if kind == "cuda":
        return UsageError(f"--device {name}: there are {count} GPUs", f"cuda:0 to cuda:{count - 1}")
    if kind == "mps":
        return UsageError(f"--device {name}: torch finds no GPU of Apple here", "--device cpu")
    return UsageError(f"no such device: {name}", hint="auto, cpu, cuda:0 or mps")
