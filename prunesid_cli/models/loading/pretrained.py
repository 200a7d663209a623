"""`from_pretrained` for one checkpoint: progress bars, placement on devices, and errors that say what to do."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import REINSTALL_HINT, Checkpoint, first_line
from prunesid_cli.models.loading.weight_checks import find_damaged_file
from prunesid_cli.types import Placement


class LoadingReport(NamedTuple):
    """Names of weights that a checkpoint lacks, and names of weights whose shape differs from the model's."""

    missing: list[str]
    mismatched: list[str]


def read_pretrained(
    model_class: type[PreTrainedModel], checkpoint: Checkpoint, config: Any, placement: Placement, **options: Any
) -> tuple[Any, LoadingReport]:
    """Read a model's weights onto its device.

    Args:
        model_class: The class of transformers to build.
        checkpoint: Where the weights are.
        config: The configuration to build the model with, which may leave out layers.
        placement: Where and how the model runs.
        options: More arguments of `from_pretrained`.

    Returns:
        The model, and which weights were not read.

    Raises:
        ModelError: The weights cannot be read, do not fit into the device's memory, or need a package that is missing.
    """
    is_quantised = getattr(config, "quantization_config", None) is not None
    if is_quantised and find_spec("accelerate") is None:
        raise ModelError("quantised weights need the package accelerate, which is missing", "pip install accelerate")
    device_map: str | dict[str, str] | None = None  # None needs no accelerate
    if placement.multi_gpu:
        device_map = "auto"
    elif is_quantised:  # quantised weights cannot be moved once they are loaded
        device_map = {"": str(placement.device)}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # The line above also silences downloads, which can take long.
    if sys.stderr.isatty() and logging.getLogger("prunesid_cli").isEnabledFor(logging.INFO):
        enable_progress_bars()
    try:
        with torch.random.fork_rng(devices=[]):  # modules of another size than stored are initialised at random
            model, report = model_class.from_pretrained(
                checkpoint.location,
                revision=checkpoint.commit,
                config=config,
                dtype=placement.dtype,
                attn_implementation=placement.attention,
                output_loading_info=True,
                device_map=device_map,
                **options,
            )
            model = model if device_map else model.to(placement.device)
    except torch.OutOfMemoryError as error:
        raise memory_error(checkpoint, placement) from error
    except ImportError as error:
        hint = "leave out --attn" if placement.attention and not is_quantised else "install what it names"
        raise ModelError(f"cannot load {checkpoint.name}: {first_line(error)}", hint) from error
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        if placement.attention and "attn_implementation" in str(error):
            problem = f"a part of {checkpoint.name} does not run with {placement.attention} attention"
            raise ModelError(problem, "leave out --attn") from error
        unexplained = ModelError(f"cannot load {checkpoint.name}: {first_line(error)}", REINSTALL_HINT)
        raise find_damaged_file(checkpoint) or unexplained from error
    # Mismatched keys are names, or tuples of a name and two shapes.
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    return model, LoadingReport(missing=list(report["missing_keys"]), mismatched=mismatched)


def memory_error(checkpoint: Checkpoint, placement: Placement) -> ModelError:
    """The error for a model that is larger than the memory of its device."""
    is_cpu = placement.device.type == "cpu"
    return ModelError(
        f"{checkpoint.name} does not fit into the memory of {placement.device}",
        "try --dtype bf16, or a smaller model" if is_cpu else "try --dtype bf16 or --device cpu",
    )
