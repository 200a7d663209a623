"""Where training begins: a language model that looks, and a projector that speaks its words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunesid_cli.demo.build import WIDTH, build_model
from prunesid_cli.demo.scenes import COLOURS, NUMBER, SHAPES, TRAIN, draw, make_scene
from samples.embedded_model.align import align_projector
from samples.embedded_model.packing import encode
from samples.embedded_model.start import BACK, MATCHING, start_language
from samples.embedded_model.store import N, Store, is_foreign
from samples.embedded_model.train import tokenizer, word_of


def test_words_look_at_what_resembles_them_and_at_the_words_before() -> None:
    model = build_model(0).eval()
    model.set_attn_implementation("eager")
    language, words = model.model.language_model, tokenizer()
    start_language(language, 0)
    table = language.get_input_embeddings().weight
    shown = table[[word_of(words)(shape) for shape in SHAPES]] - table.mean(0)
    question = torch.tensor(encode(words, "what colour is the star"))
    with torch.no_grad():
        out = language(inputs_embeds=torch.cat([shown, table[question]])[None], output_attentions=True)
    last = len(SHAPES) + len(question) - 1
    matching = [head for head in range(6) if head not in BACK]
    for layer in range(MATCHING):
        looks = out.attentions[layer][0, matching, last, : len(SHAPES)].mean(0)
        assert looks.argmax() == SHAPES.index("star")
    asking = range(last - len(question) + 4, last + 1)
    for head, words_back in BACK.items():
        looks = torch.stack([out.attentions[0][0, head, at].flip(0)[-1 - at :][:4] for at in asking]).mean(0)
        assert looks.argmax() == words_back, looks


@pytest.mark.slow
def test_visual_tokens_begin_as_the_words_for_what_they_show() -> None:
    """On features that are no more than a code of kind and colour."""
    rng = np.random.default_rng(0)
    codes = {name: rng.normal(size=WIDTH) for name in (*SHAPES, *COLOURS, NUMBER)}
    pictures = 120
    store = Store(
        rng.normal(0, 0.1, (pictures, 1 + N, WIDTH)).astype(np.float16), np.full((pictures, N), -1, dtype=np.int8)
    )
    for i in range(pictures):
        if is_foreign(i):
            continue
        scene = make_scene(TRAIN, i)
        store.things[i] = draw(scene).thing
        for k, thing in enumerate(scene.things):
            store.features[i, 1:][store.things[i] == k] += codes[thing.kind] + codes[thing.colour]
    model, words = build_model(0), tokenizer()
    table = model.get_input_embeddings().weight
    projector = model.model.multi_modal_projector
    align_projector(projector, table, word_of(words), store, 0)
    right = []
    for i in range(pictures):
        for k, thing in enumerate(() if is_foreign(i) else make_scene(TRAIN, i).things):
            patches = torch.from_numpy(store.features[i, 1:][store.things[i] == k]).float()
            with torch.no_grad():
                likeness = projector(patches) @ table[[word_of(words)(shape) for shape in SHAPES]].T
            if thing.kind in SHAPES:
                right += (likeness.argmax(-1) == SHAPES.index(thing.kind)).tolist()
    assert np.mean(right) > 0.95
