"""Tries whether a type of model that is in no table works in two halves: once for each checkpoint.

Both halves together, with nothing pruned, must give the scores of the stock model for a prompt about one image. The
result is kept in a small file, so that later commands, which may load the language half alone, need not try again.
"""

from __future__ import annotations

import gc
import json
import logging
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch import Tensor

from prunesid_cli.errors import ModelError, UnsupportedModel
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models.loading.checkpoint import Checkpoint, first_line
from prunesid_cli.models.loading.weights import load_config, load_model_half
from prunesid_cli.models.spliced.halves import SplicedLanguage, SplicedVision, model_class
from prunesid_cli.models.spliced.processor import random_image
from prunesid_cli.models.spliced.table import UNKNOWN
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.runtime.out_of_memory import is_out_of_memory
from prunesid_cli.runtime.user_folders import cache_folder
from prunesid_cli.types import Encoded, Placement, TokenSet

logger = logging.getLogger(__name__)

TRIAL_SIZE = (480, 360)
PROMPT = "What is shown?"
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of scores that is accepted, as a share of the largest score."""
HINT = "see the types that are supported: prunesid models"


def try_type(checkpoint: Checkpoint, placement: Placement) -> Checkpoint:
    """Find out how the generic adapter has to treat a checkpoint whose type is in no table.

    Args:
        checkpoint: The checkpoint.
        placement: Where both halves run, and the whole stock model, one after the other.

    Returns:
        The checkpoint, with the result.

    Raises:
        UnsupportedModel: Its two halves do not give the scores of the stock model, or cannot be run.
    """
    key = f"{checkpoint.name}@{checkpoint.revision} transformers {transformers.__version__}"
    results = _read_results()
    if key not in results:
        results = {**results, key: _compare(checkpoint, placement)}
        _write_results(results)
    return replace(checkpoint, spliced_type=replace(UNKNOWN, reads_list=results[key]["reads_list"]))


def _compare(checkpoint: Checkpoint, placement: Placement) -> dict[str, Any]:
    """Compare both halves with the stock model.

    Returns:
        `reads_list`: whether the stock model reads features as a list; and the largest `difference` of scores, as a
        share of the largest score.
    """
    logger.warning(
        "models of type %r were not tried yet: trying this one once, first in two halves, then as a whole",
        checkpoint.model_type,
    )
    placement = replace(placement, multi_gpu=False)
    try:
        image = random_image(TRIAL_SIZE)
        vision = SplicedVision(checkpoint, placement)
        item = keep_all(vision.encode([vision.preprocess(media_from_image(image))])[0])
        del vision
        language = SplicedLanguage(checkpoint, placement)
        scores = dict[bool, Tensor]()
        for reads_list in (True, False):
            language.list_modalities = ("image",) if reads_list else ()
            try:
                scores[reads_list] = language.logits([language.embed(PROMPT, [item])])[0].cpu()
                break
            except (TypeError, AttributeError) as error:
                logger.debug("features as a list: %s: %s", reads_list, first_line(error))
        language.model = None
        gc.collect()
        expected = _stock_scores(checkpoint, placement, language, image)
    except ModelError:
        raise
    except Exception as error:  # of any kind, in code of transformers that was never run in this way
        if is_out_of_memory(error):
            raise
        logger.debug("the trial failed", exc_info=True)
        problem = f"models of type {checkpoint.model_type!r} do not run in two halves: {first_line(error)}"
        raise UnsupportedModel(problem, HINT) from error
    if not scores:
        raise UnsupportedModel(f"models of type {checkpoint.model_type!r} take no features in place of pixels", HINT)
    ((reads_list, found),) = scores.items()
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCES[placement.dtype]:
        problem = f"models of type {checkpoint.model_type!r} answer otherwise in two halves than as a whole"
        raise UnsupportedModel(f"{problem}: scores differ by {difference:.0%}", HINT)
    logger.warning("both halves give the scores of the whole model (they differ by %.0e at most)", difference)
    return {"reads_list": reads_list, "difference": difference}


def keep_all(encoded: Encoded) -> TokenSet:
    """All tokens of an item, in the order of their slots."""
    rows = [
        torch.cat([segment.features, segment.extra], -1) if segment.extra is not None else segment.features
        for segment in encoded.segments
    ]
    slots = torch.cat([torch.tensor(segment.slots) for segment in encoded.segments])
    order = slots.argsort()
    tokens = torch.cat(rows)[order.to(rows[0].device)]
    return TokenSet(tokens, tuple(slots[order].tolist()), encoded.layout, is_unpruned=True)


@torch.no_grad()
def _stock_scores(checkpoint: Checkpoint, placement: Placement, language: SplicedLanguage, image: Image) -> Tensor:
    """Scores of the first token of the whole stock model's answer, for the prompt that its own processor writes.

    Args:
        checkpoint: The checkpoint.
        placement: Where the model runs.
        language: The language half, for its processor and chat template.
        image: The image of the prompt.
    """
    processor = language.processor
    text = language.render_chat([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}])
    has_bos = bool(processor.tokenizer.bos_token) and text.startswith(processor.tokenizer.bos_token)
    model = load_model_half(model_class(checkpoint), checkpoint, load_config(checkpoint), placement)
    arguments = signature(model.forward).parameters
    types = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in arguments else {}
    inputs = processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=not has_bos, **types)
    given = {name: value.to(placement.device) for name, value in inputs.items() if name in arguments}
    given["pixel_values"] = given["pixel_values"].to(placement.dtype)
    scores: Tensor = model(**given).logits[0, -1].float().cpu()
    return scores


def _results_path() -> Path:
    return cache_folder() / "tried_models.json"


def _read_results() -> dict[str, Any]:
    try:
        results = json.loads(_results_path().read_text())
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def _write_results(results: dict[str, Any]) -> None:
    path = _results_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(json.dumps(results, indent=1).encode()))
    except OSError as error:  # it is tried again the next time
        logger.debug("cannot write %s: %s", path, error)
