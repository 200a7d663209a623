"""Questions about a drawn scene, and their right answers.

Seven kinds; each is asked in a few wordings. `answer` texts are canonical: lower case, things from left to right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunesid_cli.demo.scenes import COLOURS, NUMBER, SHAPES, SIDE, Scene, Thing, with_article

REFUSAL = "i know only drawn scenes, and this is not one."
NOTHING = "nothing"
CLEAR = 10.0
"""A place is asked for only when the centre is this many pixels from the next field of the 3 x 3 grid."""
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
Rng = np.random.Generator


@dataclass(frozen=True)
class Question:
    kind: str
    prompt: str
    answer: str


def ask_all(scene: Scene, rng: Rng) -> list[Question]:
    """A few questions of every kind that the scene allows, each once."""
    found = [q for kind in KINDS for _ in range(REPEATS.get(kind, 2)) for q in KINDS[kind](scene, rng)]
    return list(dict.fromkeys(found))


def one_of(scene: Scene, kind: str, rng: Rng) -> Question | None:
    """One question of a kind, if this scene allows one."""
    return next(iter(KINDS[kind](scene, rng)), None)


def ask_of_other(rng: Rng, scene: Scene) -> Question:
    """A question put to a picture that is not a scene: any wording, always the refusal. `scene` lends the wording."""
    asked = ask_all(scene, rng)
    return Question("refusal", asked[int(rng.integers(len(asked)))].prompt, REFUSAL)


def _pick(rng: Rng, *wordings: str) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _colour(rng: Rng) -> str:
    return str(rng.choice(tuple(COLOURS)))


def _shape(rng: Rng) -> str:
    return str(rng.choice(SHAPES))


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _is_only(scene: Scene, thing: Thing) -> bool:
    return sum(t.kind == thing.kind for t in scene.things) == 1


def _reference(scene: Scene, thing: Thing, rng: Rng) -> str:
    """Words that mean just this thing."""
    if thing.kind == NUMBER:
        return "the number"
    if _is_only(scene, thing) and rng.random() < 0.6:
        return f"the {thing.kind}"
    return f"the {thing.colour} {thing.kind}"


def _caption(scene: Scene, rng: Rng) -> list[Question]:
    prompt = _pick(
        rng,
        "what is shown?",
        "what is in the picture?",
        "what is in the image?",
        "describe the picture.",
        "describe the image.",
    )
    return [Question("caption", prompt, _join([t.name for t in scene.things]))]


def _exists(scene: Scene, rng: Rng) -> list[Question]:
    """Half yes, half no; half of the nos share a shape or a colour with what is there."""
    truth = bool(rng.random() < 0.5) and bool(scene.shapes)
    if rng.random() < 0.12:
        return [Question("exists", "is there a number?", "yes" if scene.number else "no")]
    if rng.random() < 0.3:
        colour = scene.shapes[int(rng.integers(len(scene.shapes)))].colour if truth else _colour(rng)
        there = any(t.colour == colour for t in scene.shapes)
        return [Question("exists", f"is there anything {colour}?", "yes" if there else "no")]
    some = scene.shapes[int(rng.integers(len(scene.shapes)))] if scene.shapes else None
    shape, colour = (some.kind, some.colour) if truth and some else (_shape(rng), _colour(rng))
    if not truth and some and rng.random() < 0.5:
        shape, colour = (some.kind, colour) if rng.random() < 0.5 else (shape, some.colour)
    if rng.random() < 0.5:
        there = any(t.kind == shape for t in scene.shapes)
        return [Question("exists", f"is there {with_article(shape)}?", "yes" if there else "no")]
    there = any((t.kind, t.colour) == (shape, colour) for t in scene.shapes)
    return [Question("exists", f"is there {with_article(f'{colour} {shape}')}?", "yes" if there else "no")]


def _ask_colour(scene: Scene, rng: Rng) -> list[Question]:
    single = [t for t in scene.shapes if _is_only(scene, t)]
    if not single:
        return []
    thing = single[int(rng.integers(len(single)))]
    prompt = _pick(rng, "what colour is the {}?", "what color is the {}?").format(thing.kind)
    return [Question("colour", prompt, thing.colour)]


def _count(scene: Scene, rng: Rng) -> list[Question]:
    """Of all shapes, of one shape, or of one colour; what is there is asked for more often than what is not."""
    kind = int(rng.integers(3))
    if kind == 0:
        return [Question("count", "how many shapes are there?", str(len(scene.shapes)))]
    some = scene.shapes[int(rng.integers(len(scene.shapes)))] if scene.shapes and rng.random() < 0.75 else None
    if kind == 1:
        shape = some.kind if some else _shape(rng)
        plural = shape + ("es" if shape.endswith("s") else "s")
        count = sum(t.kind == shape for t in scene.shapes)
        return [Question("count", f"how many {plural} are there?", str(count))]
    colour = some.colour if some else _colour(rng)
    count = sum(t.colour == colour for t in scene.shapes)
    return [Question("count", f"how many {colour} shapes are there?", str(count))]


_SIDES: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.x < b.x,
    "right of": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}


def _relation(scene: Scene, rng: Rng) -> list[Question]:
    """What stands on one side of a thing: one thing, or nothing. Not asked where two things stand there."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    words = _reference(scene, thing, rng)
    side = str(rng.choice(tuple(_SIDES)))
    there = [t for t in scene.things if t is not thing and _SIDES[side](t, thing)]
    if len(there) > 1 or (not there and rng.random() < 0.75):
        return []
    wording = "what is to the {} {}?" if side.endswith("of") and rng.random() < 0.3 else "what is {} {}?"
    return [Question("relation", wording.format(side, words), there[0].name if there else NOTHING)]


def _where(scene: Scene, rng: Rng) -> list[Question]:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    words = _reference(scene, thing, rng)
    third = SIDE / 3
    edge = min(abs(v - line) for v in (thing.x, thing.y) for line in (third, 2 * third))
    if edge < CLEAR:
        return []
    place = PLACES[int(thing.y // third) * 3 + int(thing.x // third)]
    return [Question("where", f"where is {words}?", place)]


def _number(scene: Scene, rng: Rng) -> list[Question]:
    if scene.number is None:
        return []
    prompt = _pick(rng, "which number is written?", "which number is shown?", "what number is written?")
    return [Question("number", prompt, str(scene.number.digit))]


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


def held_out(scenes: int, per_kind: int, split: int) -> list[tuple[int, Question]]:
    """A balanced examination: (index of the scene, question), `per_kind` of each kind, two of a kind a scene."""
    from prunesid_cli.demo.scenes import make_scene

    rng = np.random.default_rng((split, 7))
    asked: dict[str, list[tuple[int, Question]]] = {kind: [] for kind in KINDS}
    for index in range(scenes):
        scene = make_scene(split, index)
        for kind, found in asked.items():
            fresh = {q for q in (one_of(scene, kind, rng) for _ in range(2)) if q}
            found += [(index, q) for q in sorted(fresh, key=lambda q: q.prompt)][: per_kind - len(found)]
    return sorted((item for found in asked.values() for item in found), key=lambda item: item[0])
