"""The Hugging Face hub: whether it can be reached, and the files of a repo that were downloaded already.

The libraries ask the hub again for each optional file of a model, and repeat a request that fails for about 20 seconds.
So one request is made first. If it fails, models are read from the folders of their downloads for the rest of the run.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from threading import Event, Thread

from prunesid_cli.errors import ModelError, PruneSIDError

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
MAX_ANSWER_SECONDS = 4.0
"""Seconds to wait for an answer of the hub, unless HF_HUB_ETAG_TIMEOUT is set."""
MIN_SERVER_ERROR = 500
"""Smallest HTTP status that means that a server failed, and not that a request was wrong."""
_is_down = Event()


def find_config(repo: str, revision: str) -> tuple[Path, bool]:
    """Get a repo's config.json from the hub, or from its download if the hub cannot be reached.

    Args:
        repo: A repo id.
        revision: A branch, tag or commit.

    Returns:
        The path, which is in the folder of a commit, and whether all files are to be read from that folder.

    Raises:
        ModelError: There is no such file.
    """
    from huggingface_hub import hf_hub_download

    is_download = find_download(repo, revision) is not None
    try:
        return Path(hf_hub_download(repo, CONFIG_FILE, revision=revision, local_files_only=is_download)), is_download
    except Exception as error:
        raise explain_hub_error(repo, revision, error) from error


def find_weights(repo: str) -> Path | None:
    """The folder of a repo's download if its weights are in it; None if not. Nothing is asked of the hub.

    Args:
        repo: A repo id.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG_FILE)
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and any(folder.glob("*.safetensors")) else None


def find_download(repo: str, revision: str = "main") -> Path | None:
    """The folder of a repo's download if the hub cannot be reached; None if the libraries may ask the hub.

    Args:
        repo: A repo id.
        revision: A branch, tag or commit.

    Raises:
        ModelError: The hub cannot be reached, and there is no download.
    """
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # it would report its retries; our error says how they ended
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        if not isinstance(try_to_load_from_cache(repo, CONFIG_FILE, revision=revision), str):
            logger.info("looking for %s on the Hugging Face hub", repo)
        is_new = not _is_down.is_set()
        if is_new and _answers(repo, revision):
            return None
        _is_down.set()
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception as error:
        raise explain_hub_error(repo, revision, error) from error
    if is_new:
        logger.info("the Hugging Face hub cannot be reached: models are used as they were downloaded")
    return folder


def _answers(repo: str, revision: str) -> bool:
    """Whether the hub answers a request about a repo, even if with an error, before the time is up."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    seconds = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else MAX_ANSWER_SECONDS
    has_answer = Event()

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repo, CONFIG_FILE, revision=revision), timeout=seconds)
        except Exception as error:  # of all but these, the download gives a better account
            # The base class of all network errors is that of httpx or httpx2, whichever the hub's library uses.
            is_network_error = "TransportError" in [base.__name__ for base in type(error).__mro__]
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if is_network_error or status >= MIN_SERVER_ERROR:
                return
        has_answer.set()

    # In a thread, because no timeout of a request covers the search for a host's address.
    thread = Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    return has_answer.is_set()


def explain_hub_error(repo: str, revision: str, error: Exception) -> PruneSIDError:
    """Turn an exception of the hub's library into a problem and a hint."""
    from huggingface_hub import errors

    offline = "without network, name a folder; the embedded model needs none: -m demo (others: prunesid models)"
    # The order matters: some of these classes are subclasses of others.
    table: tuple[tuple[type[Exception], str, str], ...] = (
        (errors.GatedRepoError, f"{repo} is gated", "accept its licence on its page, then: hf auth login"),
        (errors.RepositoryNotFoundError, f"no model called '{repo}'", "see: prunesid models"),
        (errors.RevisionNotFoundError, f"{repo} has no revision '{revision}'", "leave out --revision for the newest"),
        (errors.RemoteEntryNotFoundError, f"{repo} has no {CONFIG_FILE}", "it is not a transformers checkpoint"),
        (errors.LocalEntryNotFoundError, f"{repo} is not on this machine and the hub cannot be reached", offline),
        (errors.HFValidationError, f"'{repo}' is neither a folder nor a repo id", "see: prunesid models"),
    )
    for error_class, problem, hint in table:
        if isinstance(error, error_class):
            return ModelError(problem, hint)
    return ModelError(f"cannot get {repo}: {error}".splitlines()[0], offline)
