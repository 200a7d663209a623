"""The main flow of `ask`: images or clips and a prompt -> an answer, with nothing stored."""

from __future__ import annotations

from collections.abc import Sequence

from prunesid_cli.errors import NonFiniteError, non_finite_error
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.models.shared.schema import require_json
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.types import Answer, Encoded, Generation, Pixels, TokenSet


def ask(
    pruner: Pruner, language: LanguageHalf, media: Sequence[Media], prompt: str, generation: Generation
) -> tuple[Answer, list[TokenSet]]:
    """Answers one prompt about one or several images or clips.

    Returns:
        The answer, and the kept tokens of each image or clip.
    """
    language.check_prompt(prompt, len(media))
    items = keep_tokens(pruner, media, encode_media(pruner, media))
    return answer_items(pruner, language, items, prompt, generation), items


def encode_media(pruner: Pruner, media: Sequence[Media]) -> list[Encoded]:
    """Encodes the images and clips of one prompt."""
    return pruner.encode(preprocess_media(pruner, media))


def preprocess_media(pruner: Pruner, media: Sequence[Media]) -> list[Pixels]:
    """Preprocesses the images and clips of one prompt: how one is read may depend on how many there are."""
    with pruner.stopwatch.stage("preprocess"):
        pixels = []
        for item in media:
            num_others = sum(other.is_clip == item.is_clip for other in media) - 1
            pixels.append(pruner.preprocess(item, num_others))
        return pixels


def keep_tokens(pruner: Pruner, media: Sequence[Media], encoded: Sequence[Encoded]) -> list[TokenSet]:
    """Prunes encoded images and clips.

    Raises:
        NonFiniteError: The vision tower gave NaN or infinity.
    """
    try:
        return pruner.prune(encoded)
    except NonFiniteError as error:
        raise non_finite_error(media[error.rows[0]].source) from error


def answer_items(
    pruner: Pruner, language: LanguageHalf, items: Sequence[TokenSet], prompt: str, generation: Generation
) -> Answer:
    """Answers a prompt from kept tokens.

    Raises:
        ModelError: An answer by a schema was cut.
    """
    with pruner.stopwatch.stage("generate"):
        (answer,) = language.generate([language.embed(prompt, items)], generation)
    return require_json(answer, generation)
