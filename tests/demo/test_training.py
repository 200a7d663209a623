"""Tests of the training code: scenes, labels, questions, and shortcuts that must equal the real model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from prunesid_cli.demo.build import build_model, build_processor, clip_tower
from prunesid_cli.demo.questions import KINDS, Question, ask_about_pair, ask_all, held_out_questions
from prunesid_cli.demo.scenes import (
    GRID,
    HELD_OUT,
    NUMBER,
    PATCH,
    SIDE,
    TRAIN,
    Scene,
    Thing,
    draw,
    make_hard_scene,
    make_scene,
)
from samples.embedded_model.initialization import initialize_tower
from samples.embedded_model.labels import BACKGROUND, FIRST_COUNT, NON_SCENE, extract_patches, label_patches
from samples.embedded_model.language import Pools, has_twins
from samples.embedded_model.non_scenes import draw_non_scene
from samples.embedded_model.packing import PROMPT_PREFIX, Pack, answer_logits, encode, prompt_suffix
from samples.embedded_model.store import NUM_PATCHES, draw_kept_patches, is_non_scene, store_scene
from samples.embedded_model.tower import make_batch, tower_forward
from samples.embedded_model.tower_courses import FULL_PICTURES
from samples.embedded_model.train import make_tokenizer


def test_a_scene_is_a_function_of_its_number() -> None:
    assert make_scene(TRAIN, 3) == make_scene(TRAIN, 3) != make_scene(HELD_OUT, 3)
    assert np.array_equal(draw(make_scene(TRAIN, 3)).pixels, draw(make_scene(TRAIN, 3)).pixels)
    assert np.array_equal(draw_non_scene(1, 5), draw_non_scene(1, 5))


@pytest.mark.parametrize("make", [make_scene, make_hard_scene])
@pytest.mark.parametrize("index", range(20))
def test_patch_labels_lie_on_the_things(index: int, make: Callable[[int, int], Scene]) -> None:
    scene = make(HELD_OUT, index)
    drawing = draw(scene)
    for i, thing in enumerate(scene.parts):
        y, x = np.divmod(np.flatnonzero(drawing.part == i), GRID)
        assert len(x) > 0
        assert (abs((x + 0.5) * PATCH - thing.x) <= thing.size / 2 + PATCH).all()
        assert (abs((y + 0.5) * PATCH - thing.y) <= thing.size / 2 + PATCH).all()
    rows, present = label_patches(scene, drawing.part)
    assert set(rows[drawing.part < 0, 0]) == {BACKGROUND}
    assert present[:FIRST_COUNT].sum() == len({(part.kind, part.colour, part.value) for part in scene.parts})
    assert label_patches(None, drawing.part)[0][0, 0] == NON_SCENE


@pytest.mark.parametrize(("make", "apart"), [(make_scene, 28), (make_hard_scene, 22)])
def test_scenes_are_clear(make: Callable[[int, int], Scene], apart: float) -> None:
    """No two things are the same, any two are apart in both directions, and none leaves the picture."""
    for index in range(100):
        things = make(TRAIN, index).things
        assert len({(t.kind, t.colour) for t in things}) == len(things)
        for positions in ([t.x for t in things], sorted(t.y for t in things)):
            assert np.diff(positions).min(initial=apart) >= apart - 1e-9
        assert all(t.width / 2 <= t.x <= SIDE - t.width / 2 and t.size / 2 <= t.y <= SIDE - t.size / 2 for t in things)


def test_numbers_are_written_digit_by_digit() -> None:
    """Each digit of a number is a part, to the right of the one before, and all have a patch."""
    lengths = Counter[int]()
    for index in range(80):
        scene = make_hard_scene(TRAIN, index)
        if not scene.number:
            continue
        drawing = draw(scene)
        digits = [number for number, part in enumerate(scene.parts) if part.kind == NUMBER]
        lengths[len(digits)] += 1
        assert "".join(str(scene.parts[number].value) for number in digits) == str(scene.number.value)
        columns = [np.flatnonzero(drawing.part == number) % GRID for number in digits]
        assert [float(column.mean()) for column in columns] == sorted(float(column.mean()) for column in columns)
        assert (np.flatnonzero(drawing.part == digits[0]) % GRID).min() == min(column.min() for column in columns)
    assert set(lengths) == {1, 2, 3}


def test_questions_about_two_pictures_name_the_right_one() -> None:
    rng = np.random.default_rng(0)
    answers = Counter[str]()
    for index in range(400):
        scenes = make_hard_scene(TRAIN, 2 * index), make_hard_scene(TRAIN, 2 * index + 1)
        question = ask_about_pair(*scenes, rng)
        if question is None:
            continue
        assert question.kind == "pair"
        words = question.prompt.rstrip("?").split()
        if words[0] == "in":
            shown = [any(t.colour == words[-2] and t.kind == words[-1] for t in scene.shapes) for scene in scenes]
            named = ["picture 1" in question.answer, "picture 2" in question.answer]
            assert shown == named
            answers[question.answer] += 1
        elif "colour" in words or "color" in words:
            (thing,) = [t for t in scenes[int(words[-1]) - 1].shapes if t.kind == words[words.index("the") + 1]]
            assert question.answer == thing.colour
        elif "number" in words and words[0] != "is":
            assert [question.answer] == [str(t.value) for t in scenes[int(words[-1]) - 1].things if t.kind == NUMBER]
    assert {"picture 1", "picture 2", "no picture"} <= set(answers)


SIDES: dict[str, Callable[[Thing, Thing], bool]] = {
    "left": lambda a, b: a.x < b.x,
    "right": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}


def test_questions_have_the_right_answers() -> None:
    """Compared with a second, plain implementation."""
    rng = np.random.default_rng(0)
    kinds: Counter[str] = Counter()
    for index in range(300):
        scene = make_scene(TRAIN, index)
        for question in ask_all(scene, rng):
            kinds[question.kind] += 1
            words = question.prompt.rstrip("?.").split()
            if question.kind == "caption":
                assert all(thing.name in question.answer for thing in scene.things)
            elif question.kind == "colour":
                (thing,) = [t for t in scene.things if t.kind == words[-1]]
                assert question.answer == thing.colour
            elif question.kind == "number":
                assert question.answer == str(next(t.value for t in scene.things if t.kind == NUMBER))
            elif question.kind == "exists" and words[2] in ("a", "an") and words[-1] != "number":
                there = [t for t in scene.shapes if t.kind == words[-1] and (len(words) == 4 or t.colour == words[3])]
                assert question.answer == ("yes" if there else "no")
            elif question.kind == "relation":
                reference = question.prompt.rstrip("?").rsplit("the ", 1)[1]
                (thing,) = [t for t in scene.things if reference in (t.kind, f"{t.colour} {t.kind}")]
                beyond = next(test for side, test in SIDES.items() if side in words)
                names = [t.name for t in scene.things if t is not thing and beyond(t, thing)]
                assert [question.answer] == (names or ["nothing"])
    assert set(kinds) == set(KINDS)


def test_the_exam_is_balanced() -> None:
    counts = Counter(question.kind for _, question in held_out_questions(400, 100, HELD_OUT))
    assert counts == dict.fromkeys(KINDS, 100)


def test_patches_and_states_equal_those_of_processor_and_tower() -> None:
    """The training shortcut equals the real processor and the real CLIP on full pictures."""
    model = build_model(0).eval()
    tower = clip_tower(model)
    patches, _, labels = make_batch(TRAIN, 0, FULL_PICTURES)
    initialize_tower(tower, patches[labels.kind < NON_SCENE], torch.Generator().manual_seed(0))
    pixels = draw(make_scene(TRAIN, 1)).pixels
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": NUM_PATCHES**0.5 * PATCH}, crop_size={"height": GRID * PATCH, "width": GRID * PATCH}
    )
    values = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.model.vision_tower(values, output_hidden_states=True).hidden_states[-2]
        whole = extract_patches(pixels)[None]
        found = tower_forward(tower, whole, torch.arange(NUM_PATCHES)[None])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pictures", [1, 2])
def test_packed_questions_equal_single_questions(pictures: int) -> None:
    """Their logits equal those of each question alone, as the chat template renders it."""
    model = build_model(0).eval()
    words = make_tokenizer()
    questions = [
        Question("colour", "what colour is the star?", "red"),
        Question("count", "how many stars are there?", "2"),
    ]
    visual = torch.randn(1, pictures, 9, 192)
    pack = Pack(words, [questions])
    (separator,) = encode(words, "\n")
    with torch.no_grad():
        packed = answer_logits(model, torch.tensor([encode(words, PROMPT_PREFIX)]), separator, visual, pack)[0]
        for k, question in enumerate(questions):
            content = [*[{"type": "image"}] * pictures, {"type": "text", "text": question.prompt}]
            text = build_processor(words).apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            images = "\n".join(["<image>"] * pictures)
            assert text == f"{PROMPT_PREFIX}{images}{prompt_suffix(question.prompt)}"
            before, *after = f"{text} {question.answer}".split("<image>")
            table = model.get_input_embeddings()
            parts = [table(torch.tensor(encode(words, before)))]
            for image, words_after in zip(model.model.multi_modal_projector(visual)[0], after, strict=True):
                parts += [image, table(torch.tensor(encode(words, words_after)))]
            alone = model(inputs_embeds=torch.cat(parts)[None]).logits[0, -len(parts[-1]) :]
            mine = packed[pack.owner[0] == k][: len(alone)]
            torch.testing.assert_close(mine, alone, atol=1e-4, rtol=0)
            said = pack.target[0][pack.owner[0] == k]
            assert words.decode(said[said >= 0]) == f" {question.answer}</s>"


@pytest.mark.parametrize("count", [8, 40, 300])
def test_dropping_keeps_a_patch_of_each_thing(count: int) -> None:
    things = draw(make_scene(TRAIN, 2)).part
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        kept = draw_kept_patches(things, count, rng)
        assert len(set(kept)) == len(kept) == count
        assert set(things[kept]) >= set(things) - {-1}
        shares.append((things[kept] >= 0).mean())
    assert max(shares) > 2 * min(shares)


def test_training_continues_after_an_interruption(tmp_path: Path) -> None:
    """Interrupted and resumed runs give the same bits as one run."""
    from samples.embedded_model.workers import Trainer, Worker

    def steps(path: Path, stops: tuple[int, ...]) -> torch.Tensor:
        for stop in stops:
            torch.manual_seed(0)
            trainer = Trainer(Worker(0, 1, "cpu"), torch.nn.Linear(4, 4), path, 6, 0.1)
            while trainer.step < stop:
                x = torch.randn(8, 4, generator=torch.Generator().manual_seed(trainer.step))
                trainer.update((trainer.module(x) - x.flip(-1)).square().mean())
            trainer.save()
        return trainer.module.weight.detach()

    assert torch.equal(steps(tmp_path / "a.pt", (6,)), steps(tmp_path / "b.pt", (2, 5, 6)))


def test_every_word_has_hints_about_the_next_thing() -> None:
    words = make_tokenizer()
    pack = Pack(words, [[Question("caption", "what is shown?", "a red star and the number 4")]])
    said = {words.decode([i]).strip(): pack.hint[0, at].tolist() for at, i in enumerate(pack.ids[0].tolist())}
    shown = {word: [words.decode([i]).strip() for i in hint if i >= 0] for word, hint in said.items()}
    first, second = ["red", "star"], ["number", "4"]
    assert [shown[word] for word in ("what", "is", "shown", "?", "a")] == [[], [], first, first, first]
    assert [shown[word] for word in ("red", "star", "and", "number", "4")] == [["star"], second, second, ["4"], []]


def test_many_pictures_have_two_shapes_of_one_colour_or_a_long_number() -> None:
    pools = Pools(400)
    drawn = pools.draw(300, np.random.default_rng(0), single=False)
    twins = [not is_non_scene(i) and has_twins(store_scene(TRAIN, i)) for (i,) in drawn]
    assert 0.4 < np.mean(twins) < 0.75
    scenes = [store_scene(TRAIN, i) for (i,) in drawn if not is_non_scene(i)]
    assert np.mean([bool(scene.number) and scene.number.value > 9 for scene in scenes]) > 0.3
    assert all(len(store_scene(TRAIN, i).things) == 1 for (i,) in pools.draw(50, np.random.default_rng(0), single=True))
    assert len(pools.everything) == 400
