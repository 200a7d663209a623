"""Loads one half of a model: the class of the whole model, with the depth of the other half set to zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import REINSTALL_HINT, Checkpoint, first_line, loading_error
from prunesid_cli.models.loading.pretrained import memory_error, read_pretrained
from prunesid_cli.runtime.out_of_memory import available_memory, is_out_of_memory
from prunesid_cli.types import Placement


def load_config(checkpoint: Checkpoint) -> Any:
    """Read a checkpoint's configuration. Each call returns a copy, which the caller may change.

    Raises:
        ModelError: Its files cannot be read.
        UnsupportedModel: It is an original LLaVA checkpoint with settings that are not supported.
    """
    try:
        if checkpoint.original_config:
            from prunesid_cli.models.loading.original_llava import build_config

            return build_config(checkpoint)
        return AutoConfig.from_pretrained(checkpoint.location, revision=checkpoint.commit, trust_remote_code=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise loading_error(checkpoint, f"cannot read the configuration of {checkpoint.name}", error) from error


def load_vision_model(
    model_class: type[PreTrainedModel],
    checkpoint: Checkpoint,
    config: Any,
    placement: Placement,
    resized: Sequence[str] = (),
) -> Any:
    """Load the vision half: the whole model with no language layers and a vocabulary of one word.

    Args:
        model_class: The class of the whole model.
        checkpoint: Where the weights are.
        config: The model's configuration; its text part is changed.
        placement: Where and how it runs. It is never spread over several GPUs.
        resized: See `load_model_half`.

    Raises:
        ModelError: See `load_model_half`.
    """
    text = config.text_config
    text.vocab_size = 1
    text.pad_token_id = None  # the stored id is beyond a vocabulary of one word
    # A tower is small, and with all of it on one device the selection runs there.
    single_device = replace(placement, multi_gpu=False, has_language_layers=False)
    return load_model_half(model_class, checkpoint, config, single_device, ("embed_tokens", "lm_head", *resized))


def load_model_half(
    model_class: type[PreTrainedModel],
    checkpoint: Checkpoint,
    config: Any,
    placement: Placement,
    resized: Sequence[str] = (),
) -> Any:
    """Load the part of a model that its configuration describes, in evaluation mode and without gradients.

    Args:
        model_class: The class of the whole model.
        checkpoint: Where the weights are.
        config: The model's configuration, in which the caller removed the layers of the other half.
        placement: Where and how it runs. On the meta device, no weights are read: what preprocesses needs none.
        resized: Parts of the names of weights whose size the caller changed; these may be missing or of another shape.

    Raises:
        ModelError: Weights are missing or of another shape, cannot be read, or do not fit into memory. Weights are
            never left random, unless `checkpoint.has_random_weights`.
    """
    if not placement.has_language_layers:
        text = config.get_text_config()
        text.num_hidden_layers = 0
        if getattr(text, "layer_types", None) is not None:
            text.layer_types = []
    if placement.attention in (None, "sdpa") and getattr(config.get_text_config(), "attn_logit_softcapping", None):
        # Language models that cap attention scores, such as Gemma 2, are run eagerly. SDPA leaves that out in
        # transformers 5.17 to 5.20, and later versions refuse it. The other parts run as asked.
        parts = {**dict.fromkeys(("", *config.sub_configs), placement.attention), "text_config": "eager"}
        placement = replace(placement, attention=parts)
    if checkpoint.has_random_weights and placement.device.type != "meta":
        return _make_random_model(model_class, checkpoint, config, placement)
    options: dict[str, Any] = {"use_safetensors": True}  # other formats are pickles, which can run code
    if checkpoint.original_config:
        from prunesid_cli.models.loading import original_llava

        model_class = original_llava.adapt_model_class(model_class, config)
        options = original_llava.FROM_PRETRAINED_OPTIONS
    if placement.device.type == "meta":
        with torch.device("meta"):
            return model_class._from_config(config, attn_implementation=placement.attention)
    options = {**options, "ignore_mismatched_sizes": bool(resized)}
    model, report = read_pretrained(model_class, checkpoint, config, placement, **options)
    bad_weights = list(report.missing)
    if checkpoint.original_config:
        bad_weights = original_llava.load_separate_tower(model, bad_weights, checkpoint, placement)
    bad_weights = [name for name in [*bad_weights, *report.mismatched] if not any(part in name for part in resized)]
    if bad_weights:
        raise ModelError(
            f"{checkpoint.name} lacks {len(bad_weights)} of the weights that it needs, first {min(bad_weights)}",
            REINSTALL_HINT,
        )
    return model.eval().requires_grad_(False)


def _make_random_model(
    model_class: type[PreTrainedModel], checkpoint: Checkpoint, config: Any, placement: Placement
) -> Any:
    """Make a model with random weights directly on its device and in its dtype."""
    devices = [placement.device] if placement.device.type == "cuda" else []
    options = {"dtype": placement.dtype, "attn_implementation": placement.attention}
    try:
        with torch.device("meta"):
            meta_model = model_class._from_config(config, **options)
        needed_bytes = sum(parameter.nbytes for parameter in meta_model.parameters())
        # On a CPU this is checked first, since Linux would kill the process instead of raising an error.
        if placement.device.type == "cpu" and needed_bytes > (available_memory() or needed_bytes):
            raise memory_error(checkpoint, placement)
        with torch.random.fork_rng(devices=devices), torch.device(placement.device):
            torch.manual_seed(0)
            model = model_class._from_config(config, **options)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise memory_error(checkpoint, placement) from error
    except ImportError as error:
        raise ModelError(f"cannot make {checkpoint.name}: {first_line(error)}", "leave out --attn") from error
    return model.eval().requires_grad_(False)
