"""What lmms-eval asks, in our words: a prompt, pictures and clips that are looked up when it is their turn, and how to
answer."""

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

LONGEST = 1024
"""Tokens of an answer, where the task sets no limit."""
HEEDED = {"until", "max_new_tokens", "temperature", "do_sample", "num_beams", "top_p", "top_k"}


@dataclass(frozen=True)
class How:
    """How a task wants to be answered: an answer ends before the first of the texts `until`."""

    generation: Generation
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        ends = [at for stop in self.until if stop and (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()


@dataclass(frozen=True)
class MediaRequest:
    """A picture or clip of a prompt. Two of the same `key` are the same to the vision tower."""

    key: tuple[str, int]
    load: Callable[[], Media]

    @property
    def num_other_images(self) -> int:
        """How many more of its kind there are in the prompt."""
        return self.key[1]


@dataclass(frozen=True)
class Asked:
    """One request; `where` names it in messages."""

    task: str
    where: str
    text: str
    generation: How
    visuals: Callable[[], Sequence[Any]]

    def sights(self, sampling: FrameSampling) -> list[MediaRequest]:
        """Its pictures and clips, in order.

        Raises:
            UsageError: it has none, or something that is neither.
        """
        found = [one for one in _flat(self.visuals()) if one is not None]
        if not found:
            raise UsageError(f"{self.where}: a prompt without a picture", "ask tasks about pictures or clips alone")
        keyed = [_keyed(one, self.where, sampling) for one in found]
        kinds = Counter(clip for _, clip, _ in keyed)
        return [MediaRequest((digest, kinds[clip] - 1), load) for digest, clip, load in keyed]

    def prompt(self, items: int) -> str:
        """The text. Where it has other places for pictures than there are pictures, they come first instead, as tasks
        may mention one twice."""
        places = len(MEDIA_TAG.findall(self.text))
        return self.text if places in (0, items) else MEDIA_TAG.sub("", self.text)


def asked_of(
    requests: Iterable[Instance], task_dict: Mapping[str, Any], ignored: Callable[[str, str], object]
) -> list[Asked]:
    """Requests to generate, in their order; `ignored`: told of a task and a setting of it that means nothing here.

    A request that comes again is one of several answers to be sampled: each has a seed of its own.
    """
    found, times = list[Asked](), Counter[int]()
    for one in requests:
        text, settings, doc_to_visual, number, task, split = one.args
        for name in sorted(set(settings) - HEEDED):
            ignored(task, name)
        generation, where = how_of(settings, task, times[id(one)]), f"{task}, document {number}"
        times[id(one)] += 1
        visuals = partial(_visuals, doc_to_visual, task_dict[task][split], number)
        found.append(Asked(task, where, text, generation, visuals))
    return found


def _visuals(doc_to_visual: Callable[[Any], Any], documents: Any, number: int) -> Any:
    return doc_to_visual(documents[number])


def how_of(settings: Mapping[str, Any], task: str, seed: int = 0) -> How:
    """A task's `generation_kwargs`.

    Raises:
        UsageError: it wants a kind of search or sampling that is not done here.
    """
    samples = settings.get("do_sample", True) and (settings.get("temperature") or 0) > 0
    if (settings.get("num_beams") or 1) > 1:
        raise UsageError(f"{task} wants a beam search, which is not done here", "--gen_kwargs num_beams=1")
    if samples and ((settings.get("top_p") or 1) < 1 or settings.get("top_k")):
        raise UsageError(f"{task} samples by top_p or top_k, which is not done here", "--gen_kwargs do_sample=false")
    temperature = float(settings["temperature"]) if samples else 0.0
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    return How(Generation(int(settings.get("max_new_tokens") or LONGEST), temperature, seed if samples else 0), stops)


def _flat(visuals: Any) -> Iterator[Any]:
    if isinstance(visuals, list | tuple):
        for one in visuals:
            yield from _flat(one)
    else:
        yield visuals


def _keyed(visual: Any, where: str, sampling: FrameSampling) -> tuple[str, bool, Callable[[], Media]]:
    """What tells it from others, whether it is a clip, and how to load it."""
    if isinstance(visual, Image.Image):
        picture = _Picture(visual, where)
        return picture.digest, False, picture.media
    if isinstance(visual, str):
        return f"file {visual}", is_clip_file(visual), partial(load_media, visual, sampling)
    raise UsageError(f"{where}: neither a picture nor a file: {type(visual).__name__}", "leave out this task")


@dataclass(frozen=True)
class _Picture:
    """A picture that a dataset has decoded."""

    image: Image.Image
    where: str

    @cached_property
    def rgb(self) -> Image.Image:
        try:
            self.image.load()
            rgb, _ = to_rgb(self.image)
            transpose, _ = read_orientation(self.image)
            return rgb if transpose is None else rgb.transpose(transpose)
        except Exception as error:  # Pillow raises nearly anything on damaged files
            raise MediaError(
                f"{self.where}: cannot decode its picture: {error}", "download the dataset again"
            ) from error

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.rgb.size).encode() + self.rgb.tobytes()).hexdigest()

    def media(self) -> Media:
        return Media(source=self.where, digest=self.digest, size=self.rgb.size, notes=(), frames=(self.rgb,))
