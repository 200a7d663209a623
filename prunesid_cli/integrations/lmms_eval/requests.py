"""Requests of lmms-eval: prompts with pictures and clips, which are loaded when they are needed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.inputs.color_mode import read_orientation, to_rgb
from prunesid_cli.inputs.image import Media
from prunesid_cli.inputs.video.frame_sampling import FrameSampling
from prunesid_cli.inputs.video.load import is_clip_file, load_media
from prunesid_cli.models.shared.prompt_pieces import MEDIA_TAG
from prunesid_cli.types import Generation

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

DEFAULT_MAX_NEW_TOKENS = 1024
"""Tokens of an answer if the task sets no limit."""
SUPPORTED_SETTINGS = {"until", "max_new_tokens", "temperature", "do_sample", "num_beams", "top_p", "top_k"}


@dataclass(frozen=True)
class TaskGeneration:
    """How a task wants its answers to be generated.

    Attributes:
        generation: How to decode.
        stop_texts: An answer ends before the first of them.
    """

    generation: Generation
    stop_texts: tuple[str, ...]

    def truncate(self, text: str) -> str:
        """Return the part of an answer before the first stop text."""
        ends = [text.find(stop) for stop in self.stop_texts if stop and stop in text]
        return text[: min(ends, default=len(text))].strip()


@dataclass(frozen=True)
class MediaRequest:
    """A picture or clip of a prompt.

    Attributes:
        key: Digest, and the number of other media of the same kind in the prompt. Requests with equal keys are encoded
            to the same tokens.
        load: Loads it.
    """

    key: tuple[str, int]
    load: Callable[[], Media]

    @property
    def num_other_images(self) -> int:
        return self.key[1]


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        task: Name of the task.
        location: Task and document, for messages.
        text: The prompt as the task gives it.
        task_generation: How to generate the answer.
        load_visuals: Loads what the task gives as pictures and clips.
    """

    task: str
    location: str
    text: str
    task_generation: TaskGeneration
    load_visuals: Callable[[], Sequence[Any]]

    def media_requests(self, sampling: FrameSampling) -> list[MediaRequest]:
        """Return the pictures and clips, in order.

        Raises:
            UsageError: There are none, or one is of an unknown type.
        """
        visuals = [visual for visual in _flatten(self.load_visuals()) if visual is not None]
        if not visuals:
            raise UsageError(f"{self.location}: a prompt without a picture", "choose only tasks with pictures or clips")
        identified = [_identify(visual, self.location, sampling) for visual in visuals]
        num_of_kind = Counter(is_clip for _, is_clip, _ in identified)
        return [MediaRequest((digest, num_of_kind[is_clip] - 1), load) for digest, is_clip, load in identified]

    def prompt(self, num_media: int) -> str:
        """Return the text. If it does not mention each medium once, the mentions are removed and media come first."""
        num_mentions = len(MEDIA_TAG.findall(self.text))
        return self.text if num_mentions in (0, num_media) else MEDIA_TAG.sub("", self.text)


def parse_requests(
    instances: Iterable[Instance], documents: Mapping[str, Any], on_ignored_setting: Callable[[str, str], object]
) -> list[Request]:
    """Read requests to generate, in their order.

    A request that is repeated asks for several samples; each repetition gets a seed of its own.

    Args:
        instances: Requests of lmms-eval.
        documents: Task -> split -> documents.
        on_ignored_setting: Called with a task and a setting of it that has no effect here.

    Raises:
        UsageError: A task wants a kind of search or sampling that is not supported.
    """
    requests, repeats = list[Request](), Counter[int]()
    for instance in instances:
        text, settings, doc_to_visual, number, task, split = instance.args
        for name in sorted(set(settings) - SUPPORTED_SETTINGS):
            on_ignored_setting(task, name)
        requests.append(
            Request(
                task=task,
                location=f"{task}, document {number}",
                text=text,
                task_generation=_parse_generation(settings, task, seed=repeats[id(instance)]),
                load_visuals=partial(_load_visuals, doc_to_visual, documents[task][split], number),
            )
        )
        repeats[id(instance)] += 1
    return requests


def _load_visuals(doc_to_visual: Callable[[Any], Any], documents: Any, number: int) -> Any:
    return doc_to_visual(documents[number])


def _parse_generation(settings: Mapping[str, Any], task: str, seed: int) -> TaskGeneration:
    """Read a task's `generation_kwargs`."""
    is_sampled = settings.get("do_sample", True) and (settings.get("temperature") or 0) > 0
    if (settings.get("num_beams") or 1) > 1:
        raise UsageError(f"{task} wants a beam search, which is not supported", "--gen_kwargs num_beams=1")
    if is_sampled and ((settings.get("top_p") or 1) < 1 or settings.get("top_k")):
        raise UsageError(f"{task} samples by top_p or top_k, which is not supported", "--gen_kwargs do_sample=false")
    until = settings.get("until") or ()
    return TaskGeneration(
        generation=Generation(
            max_new_tokens=int(settings.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS),
            temperature=float(settings["temperature"]) if is_sampled else 0.0,
            seed=seed if is_sampled else 0,
        ),
        stop_texts=(until,) if isinstance(until, str) else tuple(until),
    )


def _flatten(visuals: Any) -> Iterator[Any]:
    if isinstance(visuals, list | tuple):
        for visual in visuals:
            yield from _flatten(visual)
    else:
        yield visuals


def _identify(visual: Any, location: str, sampling: FrameSampling) -> tuple[str, bool, Callable[[], Media]]:
    """Digest of a visual, whether it is a clip, and how to load it."""
    if isinstance(visual, Image.Image):
        picture = _DecodedPicture(visual, location)
        return picture.digest, False, picture.to_media
    if isinstance(visual, str):
        return f"file {visual}", is_clip_file(visual), partial(load_media, visual, sampling)
    raise UsageError(f"{location}: neither a picture nor a file: {type(visual).__name__}", "leave out this task")


@dataclass(frozen=True)
class _DecodedPicture:
    """A picture that a dataset has decoded."""

    image: Image.Image
    location: str

    @cached_property
    def rgb(self) -> Image.Image:
        try:
            self.image.load()
            rgb, _ = to_rgb(self.image)
            transpose, _ = read_orientation(self.image)
            return rgb if transpose is None else rgb.transpose(transpose)
        except Exception as error:  # Pillow raises nearly anything on damaged files
            problem = f"{self.location}: cannot decode its picture: {error}"
            raise MediaError(problem, "download the dataset again") from error

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.rgb.size).encode() + self.rgb.tobytes()).hexdigest()

    def to_media(self) -> Media:
        return Media(source=self.location, digest=self.digest, size=self.rgb.size, notes=(), frames=(self.rgb,))
