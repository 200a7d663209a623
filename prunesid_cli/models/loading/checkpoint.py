"""From a model's name to a checkpoint: where its files are, exactly which version, and its configuration."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ModelError, PruneSIDError, UsageError
from prunesid_cli.text import nearest

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
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "idefics3-8b": "HuggingFaceM4/Idefics3-8B-Llama3",
    "smolvlm2-2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "paligemma-2-3b": "google/paligemma2-3b-mix-448",
}
"""Short names for checkpoints of each family, one or two sizes of it."""
CONFIG = "config.json"
SETTINGS = "prunesid.json"
"""What a checkpoint may say to this program: {"phi": the information of an average image}."""
SAMPLES, SAMPLE_BYTES = 64, 4096
ORIGINALS = ("llava", "llava_llama", "llava_mistral")
"""Types of LLaVA as its authors published it, which a configuration with `mm_vision_tower` tells."""


@dataclass(frozen=True)
class Checkpoint:
    """name: as it is recorded (a repo id, an absolute folder, or demo); location: what transformers is given;
    revision: a commit, or for a folder a fingerprint of its contents; commit: None for a folder; original: the contents
    of config.json where they are those of LLaVA's authors, and model_type is what transformers calls the like; random:
    weights are not read but drawn, for what needs a model's size alone."""

    name: str
    location: str
    revision: str
    commit: str | None
    model_type: str
    settings: dict[str, Any]
    original: dict[str, Any] | None = None
    random: bool = False

    @property
    def sample(self) -> tuple[float, ...]:
        """The information (1 - rho) of an average image, where it was measured for this checkpoint."""
        return (self.settings["phi"],) if "phi" in self.settings else ()


def resolve(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint by alias, folder or repo id, in the local hub cache or on the hub.

    Raises:
        ModelError: there is none, or it cannot be reached.
        UsageError: a revision of what has none.
    """
    if revision and is_local(name):
        what = "the embedded model" if name == DEMO else f"{name} is a folder, which"
        raise UsageError(f"{what} has no revisions", "leave out --revision, or unset PRUNESID_REVISION")
    if name == DEMO:
        return _local(DEMO, DEMO_FOLDER)
    name = ALIASES.get(name, name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _local(str(folder.resolve()), folder.resolve())
    if os.sep in name.strip(os.sep) and (name.startswith((".", os.sep, "~")) or name.count("/") > 1):
        raise ModelError(f"no such model folder: {name}", hint="name a folder that holds a config.json, or a repo id")
    meant = None if "/" in name else nearest(name, (DEMO, *ALIASES))
    if meant:  # no model on the hub that could be read has so short a name
        raise ModelError(f"no model called {name!r}", f"did you mean {meant}? see: prunesid models")
    return _hub(name, revision or "main")


def is_local(name: str) -> bool:
    """Whether a name means a folder, or the model embedded here."""
    return name == DEMO or Path(ALIASES.get(name, name)).expanduser().is_dir()


def _local(name: str, folder: Path) -> Checkpoint:
    if not (folder / CONFIG).is_file():
        raise ModelError(f"not a model: {folder} has no {CONFIG}", hint="name the folder that save_pretrained wrote")
    return Checkpoint(name, str(folder), fingerprint(folder), None, *_read(folder / CONFIG, folder / SETTINGS))


def _hub(repo: str, revision: str) -> Checkpoint:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are no news: how they ended is said
    try:
        config = _config(repo, revision)
    except Exception as error:
        raise explain_hub_error(repo, revision, error) from error
    commit = config.parent.name
    settings = try_to_load_from_cache(repo, SETTINGS, revision=commit)
    return Checkpoint(repo, repo, commit, commit, *_read(config, Path(settings) if isinstance(settings, str) else None))


def _config(repo: str, revision: str) -> Path:
    """Of a repository, from the hub, or from its cache on this machine where that has it and the hub is not reached."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_here = isinstance(try_to_load_from_cache(repo, CONFIG, revision=revision), str)
    if not is_here and not constants.HF_HUB_OFFLINE:
        printer.note(f"looking for {repo} on the Hugging Face hub")
        try:
            get_hf_file_metadata(hf_hub_url(repo, CONFIG, revision=revision))
        except Exception as error:  # whatever else it is, the download tells better
            # Of httpx or httpx2, as the hub's library has it. A download would go on trying for half a minute.
            if type(error).__name__ == "ConnectError":
                raise LocalEntryNotFoundError(str(error)) from error
    return Path(hf_hub_download(repo, CONFIG, revision=revision))


def _read(config: Path, settings: Path | None) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
        extra = json.loads(settings.read_text(encoding="utf-8")) if settings and settings.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{config} is not JSON: {error}", hint="download the model again") from error
    model_type = str(said.get("model_type", "unknown"))
    if "mm_vision_tower" not in said or model_type not in ORIGINALS:
        return model_type, extra, None
    return "llava_next" if "anyres" in str(said.get("image_aspect_ratio")) else "llava", extra, said


def fingerprint(folder: Path) -> str:
    """What stands for a commit where there is none: a digest of every small file, and of 64 samples of 4 kB of each
    large one. A change that passes between the samples goes unseen."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(
        p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".safetensors", ".bin", ".model")
    ):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            starts = range(0, size, max(SAMPLE_BYTES, size // SAMPLES)) if size > SAMPLES * SAMPLE_BYTES else (0,)
            for start in starts:
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES if len(starts) > 1 else size))
    return f"folder-{digest.hexdigest()}"


def explain_hub_error(repo: str, revision: str, error: Exception) -> PruneSIDError:
    """The hub's exception as a line and a hint. Order matters: some are subclasses of others."""
    from huggingface_hub import errors

    offline = "without network, name a folder; the embedded model needs none: -m demo (others: prunesid models)"
    table: tuple[tuple[type[Exception], str, str], ...] = (
        (errors.GatedRepoError, f"{repo} is gated", "accept its licence on its page, then: hf auth login"),
        (errors.RepositoryNotFoundError, f"no model called {repo!r}", "see: prunesid models"),
        (errors.RevisionNotFoundError, f"{repo} has no revision {revision!r}", "leave out --revision for the newest"),
        (errors.RemoteEntryNotFoundError, f"{repo} has no {CONFIG}", "it is not a transformers checkpoint"),
        (errors.LocalEntryNotFoundError, f"{repo} is not on this machine and the hub cannot be reached", offline),
        (errors.HFValidationError, f"{repo!r} is neither a folder nor a repo id", "see: prunesid models"),
    )
    for kind, problem, hint in table:
        if isinstance(error, kind):
            return ModelError(problem, hint)
    return ModelError(f"cannot get {repo}: {error}".splitlines()[0], offline)
