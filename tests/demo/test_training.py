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
from prunesid_cli.demo.questions import KINDS, Question, ask_all, held_out_questions
from prunesid_cli.demo.scenes import GRID, HELD_OUT, NUMBER, PATCH, TRAIN, Thing, draw, make_scene
from samples.embedded_model.initialization import initialize_tower
from samples.embedded_model.labels import BACKGROUND, NON_SCENE, extract_patches, label_patches
from samples.embedded_model.language import Pools, has_twins
from samples.embedded_model.non_scenes import draw_non_scene
from samples.embedded_model.packing import PROMPT_PREFIX, Pack, answer_logits, encode, prompt_suffix
from samples.embedded_model.store import NUM_PATCHES, draw_kept_patches, is_non_scene
from samples.embedded_model.tower import make_batch, tower_forward
from samples.embedded_model.tower_courses import FULL_PICTURES
from samples.embedded_model.train import make_tokenizer


def test_a_scene_is_a_function_of_its_number() -> None:
    assert make_scene(TRAIN, 3) == make_scene(TRAIN, 3) != make_scene(HELD_OUT, 3)
    assert np.array_equal(draw(make_scene(TRAIN, 3)).pixels, draw(make_scene(TRAIN, 3)).pixels)
    assert np.array_equal(draw_non_scene(1, 5), draw_non_scene(1, 5))


@pytest.mark.parametrize("index", range(20))
def test_patch_labels_lie_on_the_things(index: int) -> None:
    scene = make_scene(HELD_OUT, index)
    drawing = draw(scene)
    for i, thing in enumerate(scene.things):
        y, x = np.divmod(np.flatnonzero(drawing.thing == i), GRID)
        assert len(x) > 0
        assert (abs((x + 0.5) * PATCH - thing.x) <= thing.size / 2 + PATCH).all()
        assert (abs((y + 0.5) * PATCH - thing.y) <= thing.size / 2 + PATCH).all()
    rows, present = label_patches(scene, drawing.thing)
    assert set(rows[drawing.thing < 0, 0]) == {BACKGROUND}
    assert present[:58].sum() == len(scene.things)
    assert label_patches(None, drawing.thing)[0][0, 0] == NON_SCENE


def test_scenes_are_clear() -> None:
    """No two things are the same, and any two are apart in both directions."""
    for index in range(100):
        things = make_scene(TRAIN, index).things
        assert len({(t.kind, t.colour) for t in things}) == len(things)
        for a, b in zip(things, things[1:], strict=False):
            assert b.x - a.x >= 28


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
                assert question.answer == str(next(t.digit for t in scene.things if t.kind == NUMBER))
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


def test_packed_questions_equal_single_questions() -> None:
    """Their logits equal those of each question alone, as the chat template renders it."""
    model = build_model(0).eval()
    words = make_tokenizer()
    questions = [
        Question("colour", "what colour is the star?", "red"),
        Question("count", "how many stars are there?", "2"),
    ]
    visual = torch.randn(1, 9, 192)
    pack = Pack(words, [questions])
    with torch.no_grad():
        packed = answer_logits(model, torch.tensor([encode(words, PROMPT_PREFIX)]), visual, pack)[0]
        for k, question in enumerate(questions):
            content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
            text = build_processor(words).apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            assert text == f"{PROMPT_PREFIX}<image>{prompt_suffix(question.prompt)}"
            ids = torch.tensor(encode(words, f"{text} {question.answer}"))
            at = int((ids == words.convert_tokens_to_ids("<image>")).nonzero())
            table = model.get_input_embeddings()
            image = model.model.multi_modal_projector(visual)[0]
            embeds = torch.cat([table(ids[:at]), image, table(ids[at + 1 :])])
            alone = model(inputs_embeds=embeds[None]).logits[0, at + 9 :]
            mine = packed[pack.owner[0] == k][: len(alone)]
            torch.testing.assert_close(mine, alone, atol=1e-4, rtol=0)
            said = pack.target[0][pack.owner[0] == k]
            assert words.decode(said[said >= 0]) == f" {question.answer}</s>"


@pytest.mark.parametrize("count", [8, 40, 300])
def test_dropping_keeps_a_patch_of_each_thing(count: int) -> None:
    things = draw(make_scene(TRAIN, 2)).thing
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


def test_half_of_the_pictures_have_two_shapes_of_one_colour() -> None:
    pools = Pools(400)
    drawn = pools.draw(300, np.random.default_rng(0), single=False)
    twins = [not is_non_scene(i) and has_twins(make_scene(TRAIN, i)) for i in drawn]
    assert 0.5 < np.mean(twins) < 0.75
    assert all(len(make_scene(TRAIN, i).things) == 1 for i in pools.draw(50, np.random.default_rng(0), single=True))
    assert len(pools.everything) == 400
