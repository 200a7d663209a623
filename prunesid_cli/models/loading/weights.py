"""Loading one half of a model: the whole model's own class, with the other half's depth set to nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ModelError, UsageError
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weight_checks import REINSTALL_HINT, damaged
from prunesid_cli.runtime.out_of_memory import available_memory, is_out_of_memory
from prunesid_cli.types import Placement

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_placement(device: str, dtype: str, attention: str, config: PretrainedConfig) -> Placement:
    """What `auto` means: the fastest device, or all GPUs where accelerate is installed; the checkpoint's own half
    precision there, float32 on a CPU; SDPA."""
    where = _device(device)
    everywhere = device == "auto" and torch.cuda.device_count() > 1 and find_spec("accelerate") is not None
    if dtype != "auto":
        return Placement(where, DTYPES[dtype], _attention(attention), everywhere)
    stored = getattr(config, "dtype", None)
    half = stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16
    return Placement(where, torch.float32 if where.type == "cpu" else half, _attention(attention), everywhere)


def _device(name: str) -> torch.device:
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no such device: {name}", hint="auto, cpu, cuda:0 or mps") from error
    return device


def _attention(name: str) -> str:
    return "sdpa" if name == "auto" else name


def load_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's configuration, a copy of its own for each call."""
    try:
        if checkpoint.original_config:
            return import_module("prunesid_cli.models.loading.original_llava").configuration(checkpoint)
        return AutoConfig.from_pretrained(checkpoint.location, revision=checkpoint.commit)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the configuration of {checkpoint.name}: {first_line(error)}", REINSTALL_HINT) from error


def load_vision_model(
    kind: type[PreTrainedModel], checkpoint: Checkpoint, config: Any, placement: Placement, resized: Sequence[str] = ()
) -> Any:
    """The weights of the vision half: the whole model but for its language model, which is left with one word."""
    text = config.text_config
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 0, 1, None  # an index beyond those of one word
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = []
    alone = replace(placement, multi_gpu=False)  # a tower is small, and one device is then the one to select on
    return load_model_half(kind, checkpoint, config, alone, ("embed_tokens", "lm_head", *resized))


def load_model_half(
    kind: type[PreTrainedModel], checkpoint: Checkpoint, config: Any, placement: Placement, resized: Sequence[str] = ()
) -> Any:
    """The weights of one half; `config` says which, `resized` names modules whose size it changed on purpose.

    Raises:
        ModelError: weights are missing or of another shape. They are never left random, unless the checkpoint says so.
    """
    if checkpoint.has_random_weights:
        return _drawn(kind, checkpoint, config, placement)
    options: dict[str, Any] = {"use_safetensors": True}  # the others are pickles, which can run code
    if checkpoint.original_config:
        original = import_module("prunesid_cli.models.loading.original_llava")
        kind, options = original.fitted(kind, config), original.READING
    model, report = read_weights(kind, checkpoint, config, placement, ignore_mismatched_sizes=bool(resized), **options)
    wrong = names(report["missing_keys"])
    if checkpoint.original_config:
        wrong = original.with_tower(model, wrong, checkpoint, placement)
    wrong = sorted(wrong + names(report["mismatched_keys"]))
    wrong = [name for name in wrong if not any(part in name for part in resized)]
    if wrong:
        raise ModelError(
            f"{checkpoint.name} lacks {len(wrong)} of the weights that it needs, first {wrong[0]}", REINSTALL_HINT
        )
    return model.eval().requires_grad_(False)


def _drawn(kind: type[PreTrainedModel], checkpoint: Checkpoint, config: Any, placement: Placement) -> Any:
    """Random weights, made where they are needed and in the dtype that is."""
    devices = [placement.device] if placement.device.type == "cuda" else []
    options = {"dtype": placement.dtype, "attn_implementation": placement.attention}
    try:
        with torch.device("meta"):
            needed = sum(one.nbytes for one in kind._from_config(config, **options).parameters())
        if placement.device.type == "cpu" and needed > (available_memory() or needed):  # Linux would end this process instead
            raise _too_large(checkpoint, placement)
        with torch.random.fork_rng(devices=devices), torch.device(placement.device):
            torch.manual_seed(0)
            model = kind._from_config(config, **options)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(checkpoint, placement) from error
    except ImportError as error:
        raise ModelError(f"cannot make {checkpoint.name}: {first_line(error)}", "try --attn sdpa") from error
    return model.eval().requires_grad_(False)


def _too_large(checkpoint: Checkpoint, placement: Placement) -> ModelError:
    problem = f"{checkpoint.name} does not fit into the memory of {placement.device}"
    is_cpu = placement.device.type == "cpu"
    return ModelError(problem, "try --dtype bf16, or a smaller model" if is_cpu else "try --dtype bf16 or --device cpu")


def read_weights(
    kind: type[PreTrainedModel], checkpoint: Checkpoint, config: Any, placement: Placement, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A model on its device, and transformers' report of what it found; options: of `from_pretrained`."""
    spread = _spread(config, placement)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.stderr.isatty() and not printer.quiet:  # the line above silences downloads too, which can take long
        enable_progress_bars()
    try:
        with torch.random.fork_rng(devices=[]):  # what is resized on purpose is drawn at random
            model, report = kind.from_pretrained(
                checkpoint.location,
                revision=checkpoint.commit,
                config=config,
                dtype=placement.dtype,
                attn_implementation=placement.attention,
                output_loading_info=True,
                device_map=spread,
                **options,
            )
            return model if spread else model.to(placement.device), report
    except torch.OutOfMemoryError as error:
        raise _too_large(checkpoint, placement) from error
    except ImportError as error:
        hint = "install what it names" if _is_quantised(config) else "try --attn sdpa"
        raise ModelError(f"cannot load {checkpoint.name}: {first_line(error)}", hint) from error
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        unknown = ModelError(f"cannot load {checkpoint.name}: {first_line(error)}", REINSTALL_HINT)
        raise damaged(checkpoint) or unknown from error


def _spread(config: Any, placement: Placement) -> str | dict[str, str] | None:
    """Where accelerate puts the parts of a model; None: all on one device, without it.

    Quantised weights cannot be moved once they are loaded. A model is laid over several GPUs only where one was not
    asked for by name.
    """
    if _is_quantised(config) and find_spec("accelerate") is None:
        raise ModelError("quantised weights are loaded by accelerate, which is missing", "pip install accelerate")
    if placement.multi_gpu:
        return "auto"
    return {"": str(placement.device)} if _is_quantised(config) else None


def _is_quantised(config: Any) -> bool:
    return getattr(config, "quantization_config", None) is not None


def names(keys: Any) -> list[str]:
    """Keys are names, or (name, shape, shape) where sizes differ."""
    return [key if isinstance(key, str) else key[0] for key in keys]


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
