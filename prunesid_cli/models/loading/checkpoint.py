"""From a model's name to a checkpoint: where its files are, which version they are, and what its config.json says."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesid_cli.errors import ModelError, UsageError
from prunesid_cli.models.loading.hub import CONFIG_FILE, find_config
from prunesid_cli.text import nearest

if TYPE_CHECKING:
    from prunesid_cli.models.spliced.table import SplicedType

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parents[2] / "demo" / "model"
ALIASES = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "llava-1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-next-video-7b": "llava-hf/LLaVA-NeXT-Video-7B-hf",
    "llava-onevision-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "video-llava-7b": "LanguageBind/Video-LLaVA-7B-hf",
    "qwen2-vl-7b": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3-vl-30b": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "qwen3.5-27b": "Qwen/Qwen3.5-27B",
    "qwen3.5-35b": "Qwen/Qwen3.5-35B-A3B",
    "gemma-4-e2b": "google/gemma-4-E2B-it",
    "gemma-4-12b": "google/gemma-4-12B-it",
    "mistral-small-3.1-24b": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    "glm-4.1v-9b": "zai-org/GLM-4.1V-9B-Thinking",
    "glm-4.5v": "zai-org/GLM-4.5V",
    "glm-ocr": "zai-org/GLM-OCR",
    "minicpm-v-4.6": "openbmb/MiniCPM-V-4.6",
    "lfm2-vl-1.6b": "LiquidAI/LFM2-VL-1.6B",
    "kimi-k2.6": "moonshotai/Kimi-K2.6",
    "paddleocr-vl": "PaddlePaddle/PaddleOCR-VL",
    "ernie-4.5-vl-28b": "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    "aya-vision-8b": "CohereForAI/aya-vision-8b",
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "idefics3-8b": "HuggingFaceM4/Idefics3-8B-Llama3",
    "smolvlm2-2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "paligemma-2-3b": "google/paligemma2-3b-mix-448",
}
"""Short names for checkpoints: one or two sizes of each family."""
SETTINGS_FILE = "prunesid.json"
"""Optional file of a checkpoint with settings for this program: {"phi": the information of an average image}."""
FINGERPRINT_SAMPLES, FINGERPRINT_SAMPLE_BYTES = 64, 4096
FINGERPRINT_SUFFIXES = (".json", ".jinja", ".safetensors", ".bin", ".model")
ORIGINAL_MODEL_TYPES = ("llava", "llava_llama", "llava_mistral")
"""Values of `model_type` that LLaVA's authors use, in configurations that also have `mm_vision_tower`."""
REINSTALL_HINT = "download the model again, or name another revision"


@dataclass(frozen=True)
class Checkpoint:
    """One version of a model.

    Attributes:
        name: The name that is recorded: a repo id, an absolute folder, or "demo".
        location: What `from_pretrained` takes: a repo id or a folder. While the hub cannot be reached, the folder of a
            repo's download.
        revision: A commit, or the fingerprint of a folder's contents.
        commit: The commit of a repo; None if the location is a folder.
        model_type: The type of transformers, a key of `FAMILIES`. For an original LLaVA checkpoint, the type of the
            equivalent model of transformers.
        settings: The contents of prunesid.json; empty if there is none.
        original_config: The contents of config.json if it has the format of LLaVA's authors; else None.
        spliced_type: How the generic adapter treats a type of model that is in no table; None if it was not tried.
        has_random_weights: Whether to draw the weights at random instead of reading them. For benchmarks, which need
            only a model's size.
    """

    name: str
    location: str
    revision: str
    commit: str | None
    model_type: str
    settings: dict[str, Any]
    original_config: dict[str, Any] | None = None
    spliced_type: SplicedType | None = None
    has_random_weights: bool = False

    @property
    def typical_information(self) -> tuple[float, ...]:
        """The information (1 - rho) of an average image, if it was measured for this checkpoint; else empty."""
        return (self.settings["phi"],) if "phi" in self.settings else ()


def resolve(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint by alias, folder or repo id, in the local hub cache or on the hub.

    Args:
        name: "demo", a key of `ALIASES`, a folder, or a repo id.
        revision: A branch, tag or commit of a repo; None is "main".

    Raises:
        ModelError: There is no such checkpoint, or it cannot be reached.
        UsageError: A revision was given for a folder or the embedded model.
    """
    if revision and is_local(name):
        subject = "the embedded model" if name == DEMO else f"{name} is a folder, which"
        raise UsageError(f"{subject} has no revisions", "leave out --revision, or unset PRUNESID_REVISION")
    if name == DEMO:
        return _resolve_folder(DEMO, DEMO_FOLDER)
    name = ALIASES.get(name, name)
    folder = Path(os.path.expanduser(name))  # unlike Path.expanduser, it accepts a user without a home folder
    if folder.is_dir():
        return _resolve_folder(str(folder.resolve()), folder.resolve())
    if os.sep in name.strip(os.sep) and (name.startswith((".", os.sep, "~")) or name.count("/") > 1):
        raise ModelError(f"no such model folder: {name}", hint="name a folder that holds a config.json, or a repo id")
    similar = None if "/" in name else nearest(name, (DEMO, *ALIASES))
    if similar:  # the hub has no readable model with so short a name
        raise ModelError(f"no model called '{name}'", f"did you mean {similar}? see: prunesid models")
    return _resolve_repo(name, revision or "main")


def is_local(name: str) -> bool:
    """Whether a name means a folder, or the embedded model."""
    return name == DEMO or os.path.isdir(os.path.expanduser(ALIASES.get(name, name)))


def fingerprint(folder: Path) -> str:
    """A digest of a folder's contents, which stands for a commit.

    It covers every small file, and 64 samples of 4 kB of each large one. A change between the samples is not noticed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in FINGERPRINT_SUFFIXES):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            if size <= FINGERPRINT_SAMPLES * FINGERPRINT_SAMPLE_BYTES:
                digest.update(file.read(size))
                continue
            for start in range(0, size, max(FINGERPRINT_SAMPLE_BYTES, size // FINGERPRINT_SAMPLES)):
                file.seek(start)
                digest.update(file.read(FINGERPRINT_SAMPLE_BYTES))
    return f"folder-{digest.hexdigest()}"


def loading_error(checkpoint: Checkpoint, problem: str, error: Exception) -> ModelError:
    """The error for files of a checkpoint that transformers cannot load.

    Args:
        checkpoint: The checkpoint.
        problem: What cannot be done.
        error: Why.
    """
    if "trust_remote_code" in str(error):
        own_code = f"{problem}: it needs Python code that comes with the model, and prunesid runs no such code"
        return ModelError(own_code, "choose a checkpoint that transformers reads by itself")
    if "torchvision" in str(error) and find_spec("torchvision") is None:
        return ModelError(f"{checkpoint.name} needs the package torchvision", "pip install torchvision")
    if isinstance(error, ImportError) or re.search("torchvision|requirements", str(error)):  # a class is missing
        return ModelError(f"{problem}: {first_line(error)}", "pip install -U transformers torchvision")
    return ModelError(f"{problem}: {first_line(error)}", REINSTALL_HINT)


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not empty, or else the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _resolve_folder(name: str, folder: Path) -> Checkpoint:
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(
            f"not a model: {folder} has no {CONFIG_FILE}", hint="name the folder that save_pretrained wrote"
        )
    return Checkpoint(
        name=name,
        location=str(folder),
        revision=fingerprint(folder),
        commit=None,
        **_read_config(folder / CONFIG_FILE, folder / SETTINGS_FILE),
    )


def _resolve_repo(repo: str, revision: str) -> Checkpoint:
    from huggingface_hub import try_to_load_from_cache

    config, is_download = find_config(repo, revision)
    commit = config.parent.name
    settings = try_to_load_from_cache(repo, SETTINGS_FILE, revision=commit)
    return Checkpoint(
        name=repo,
        location=str(config.parent) if is_download else repo,
        revision=commit,
        commit=None if is_download else commit,
        **_read_config(config, Path(settings) if isinstance(settings, str) else None),
    )


def _read_config(config_path: Path, settings_path: Path | None) -> dict[str, Any]:
    """The fields of `Checkpoint` that its files determine: model_type, settings and original_config."""
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        settings = {}
        if settings_path and settings_path.is_file():
            settings = json.loads(settings_path.read_text(encoding="utf-8"))
        if not (isinstance(config, dict) and isinstance(settings, dict)):
            raise ValueError("it is no object")
    except OSError as error:
        raise ModelError(f"cannot read {config_path}: {error.strerror}", "check it with: ls -lL") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{config_path} is no JSON of a model: {error}", "download the model again") from error
    model_type, original_config = str(config.get("model_type", "unknown")), None
    if "mm_vision_tower" in config and model_type in ORIGINAL_MODEL_TYPES:
        model_type = "llava_next" if "anyres" in str(config.get("image_aspect_ratio")) else "llava"
        original_config = config
    return {"model_type": model_type, "settings": settings, "original_config": original_config}
