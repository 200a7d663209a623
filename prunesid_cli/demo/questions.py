"""Questions about a drawn scene, or about two of them, and their answers.

There are seven kinds of questions about a scene, each in a few wordings, and one about two scenes. Answers are in lower
case, with things from left to right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunesid_cli.demo.scenes import COLOURS, NUMBER, SHAPES, SIDE, Scene, Thing, make_scene, with_article

REFUSAL = "i know only drawn scenes, and this is not one."
NOTHING = "nothing"
MAX_CAPTION_THINGS = 3
"""Scenes with more things are not described as a whole."""
MIN_FIELD_DISTANCE = 10.0
"""Pixels between a thing's centre and the next field of the 3 x 3 grid for which its place is asked."""
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
Rng = np.random.Generator


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        kind: A name of `KINDS`, "pair" or "refusal".
        prompt: The question.
        answer: The answer.
    """

    kind: str
    prompt: str
    answer: str


def ask_all(scene: Scene, rng: Rng) -> list[Question]:
    """Return different questions of all kinds that the scene allows, a few of each."""
    questions = [
        question for kind in KINDS for _ in range(REPEATS.get(kind, 2)) for question in KINDS[kind](scene, rng)
    ]
    return list(dict.fromkeys(questions))


def ask_one(scene: Scene, kind: str, rng: Rng) -> Question | None:
    """Return a question of a kind; None if the scene allows none, or none for this random choice."""
    return next(iter(KINDS[kind](scene, rng)), None)


def ask_about_non_scene(rng: Rng, scene: Scene) -> Question:
    """Return a question about a picture that is not a scene. Its wording is one for `scene`, its answer the refusal."""
    questions = ask_all(scene, rng)
    return Question("refusal", questions[int(rng.integers(len(questions)))].prompt, REFUSAL)


def ask_about_pair(first: Scene, second: Scene, rng: Rng) -> Question | None:
    """Return a question that names one of two scenes or asks which of them has a thing; None as in `ask_one`."""
    number = int(rng.integers(2))
    scene, place = (first, second)[number], f"in picture {number + 1}?"
    kind = str(rng.choice(("exists", "colour", "count", "number", "which")))
    if kind == "which":
        shown = scene.shapes[int(rng.integers(len(scene.shapes)))] if scene.shapes and rng.random() < 0.85 else None
        shape, colour = (shown.kind, shown.colour) if shown else (_random_shape(rng), _random_colour(rng))
        names = [
            f"picture {index}"
            for index, other in enumerate((first, second), 1)
            if any((thing.kind, thing.colour) == (shape, colour) for thing in other.shapes)
        ]
        wording = f"in which picture is {with_article(f'{colour} {shape}')}?"
        return Question("pair", wording, " and ".join(names) or "no picture")
    about_one = ask_one(scene, kind, rng)
    return about_one and Question("pair", f"{about_one.prompt.rstrip('?')} {place}", about_one.answer)


def held_out_questions(
    num_scenes: int, per_kind: int, split: int, make: Callable[[int, int], Scene] = make_scene
) -> list[tuple[int, Question]]:
    """Return a balanced set of questions, ordered by scene.

    Args:
        num_scenes: Scenes to ask about; there are at most two questions of a kind about each.
        per_kind: Questions of each kind.
        split: Split of the scenes.
        make: Makes the scene with a number of a split.

    Returns:
        Pairs of the index of a scene and a question.
    """
    rng = np.random.default_rng((split, 7))
    by_kind: dict[str, list[tuple[int, Question]]] = {kind: [] for kind in KINDS}
    for index in range(num_scenes):
        scene = make(split, index)
        for kind, pairs in by_kind.items():
            questions = {question for question in (ask_one(scene, kind, rng) for _ in range(2)) if question}
            ordered = sorted(questions, key=lambda question: question.prompt)
            pairs += [(index, question) for question in ordered][: per_kind - len(pairs)]
    return sorted((pair for pairs in by_kind.values() for pair in pairs), key=lambda pair: pair[0])


# Each function below draws from `rng` in a fixed order: another order would change all questions after it.


def _choose(rng: Rng, *wordings: str) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _random_colour(rng: Rng) -> str:
    return str(rng.choice(tuple(COLOURS)))


def _random_shape(rng: Rng) -> str:
    return str(rng.choice(SHAPES))


def _is_only_of_its_kind(scene: Scene, thing: Thing) -> bool:
    return sum(other.kind == thing.kind for other in scene.things) == 1


def _reference(scene: Scene, thing: Thing, rng: Rng) -> str:
    """Words that mean just this thing."""
    if thing.kind == NUMBER:
        return "the number"
    if _is_only_of_its_kind(scene, thing) and rng.random() < 0.6:
        return f"the {thing.kind}"
    return f"the {thing.colour} {thing.kind}"


def _caption(scene: Scene, rng: Rng) -> list[Question]:
    prompt = _choose(
        rng,
        "what is shown?",
        "what is in the picture?",
        "what is in the image?",
        "describe the picture.",
        "describe the image.",
    )
    if len(scene.things) > MAX_CAPTION_THINGS:
        return []
    *first, last = [thing.name for thing in scene.things]
    return [Question("caption", prompt, f"{', '.join(first)} and {last}" if first else last)]


def _exists(scene: Scene, rng: Rng) -> list[Question]:
    """Half of the answers are yes. Half of the things that do not exist share shape or colour with one that does."""
    truth = bool(rng.random() < 0.5) and bool(scene.shapes)
    if rng.random() < 0.12:
        return [Question("exists", "is there a number?", "yes" if scene.number else "no")]
    if rng.random() < 0.3:
        colour = scene.shapes[int(rng.integers(len(scene.shapes)))].colour if truth else _random_colour(rng)
        exists = any(thing.colour == colour for thing in scene.shapes)
        return [Question("exists", f"is there anything {colour}?", "yes" if exists else "no")]
    thing = scene.shapes[int(rng.integers(len(scene.shapes)))] if scene.shapes else None
    shape, colour = (thing.kind, thing.colour) if truth and thing else (_random_shape(rng), _random_colour(rng))
    if not truth and thing and rng.random() < 0.5:
        shape, colour = (thing.kind, colour) if rng.random() < 0.5 else (shape, thing.colour)
    if rng.random() < 0.5:
        exists = any(thing.kind == shape for thing in scene.shapes)
        return [Question("exists", f"is there {with_article(shape)}?", "yes" if exists else "no")]
    exists = any((thing.kind, thing.colour) == (shape, colour) for thing in scene.shapes)
    return [Question("exists", f"is there {with_article(f'{colour} {shape}')}?", "yes" if exists else "no")]


def _ask_colour(scene: Scene, rng: Rng) -> list[Question]:
    candidates = [thing for thing in scene.shapes if _is_only_of_its_kind(scene, thing)]
    if not candidates:
        return []
    thing = candidates[int(rng.integers(len(candidates)))]
    prompt = _choose(rng, "what colour is the {}?", "what color is the {}?").format(thing.kind)
    return [Question("colour", prompt, thing.colour)]


def _count(scene: Scene, rng: Rng) -> list[Question]:
    """Counts all shapes, one shape or one colour; more often one that is there than one that is not."""
    what = int(rng.integers(3))
    if what == 0:
        return [Question("count", "how many shapes are there?", str(len(scene.shapes)))]
    thing = scene.shapes[int(rng.integers(len(scene.shapes)))] if scene.shapes and rng.random() < 0.75 else None
    if what == 1:
        shape = thing.kind if thing else _random_shape(rng)
        plural = shape + ("es" if shape.endswith("s") else "s")
        count = sum(thing.kind == shape for thing in scene.shapes)
        return [Question("count", f"how many {plural} are there?", str(count))]
    colour = thing.colour if thing else _random_colour(rng)
    count = sum(thing.colour == colour for thing in scene.shapes)
    return [Question("count", f"how many {colour} shapes are there?", str(count))]


_SIDES: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.x < b.x,
    "right of": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}


def _relation(scene: Scene, rng: Rng) -> list[Question]:
    """Asks what is on one side of a thing: one thing or nothing. There is no question if it is two things."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    reference = _reference(scene, thing, rng)
    side = str(rng.choice(tuple(_SIDES)))
    on_side = [other for other in scene.things if other is not thing and _SIDES[side](other, thing)]
    if len(on_side) > 1 or (not on_side and rng.random() < 0.75):
        return []
    wording = "what is to the {} {}?" if side.endswith("of") and rng.random() < 0.3 else "what is {} {}?"
    return [Question("relation", wording.format(side, reference), on_side[0].name if on_side else NOTHING)]


def _where(scene: Scene, rng: Rng) -> list[Question]:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    reference = _reference(scene, thing, rng)
    third = SIDE / 3
    distance = min(abs(position - line) for position in (thing.x, thing.y) for line in (third, 2 * third))
    if distance < MIN_FIELD_DISTANCE:
        return []
    place = PLACES[int(thing.y // third) * 3 + int(thing.x // third)]
    return [Question("where", f"where is {reference}?", place)]


def _number(scene: Scene, rng: Rng) -> list[Question]:
    if scene.number is None:
        return []
    prompt = _choose(rng, "which number is written?", "which number is shown?", "what number is written?")
    return [Question("number", prompt, str(scene.number.value))]


KINDS: dict[str, Callable[[Scene, Rng], list[Question]]] = {
    "caption": _caption,
    "exists": _exists,
    "colour": _ask_colour,
    "count": _count,
    "relation": _relation,
    "where": _where,
    "number": _number,
}
REPEATS = {"caption": 1, "number": 1, "exists": 3, "relation": 4, "count": 3}
"""How often `ask_all` asks each kind, if not twice."""
