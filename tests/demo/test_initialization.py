"""Tests of the initial weights: attention heads of the language model, and the alignment of the projector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunesid_cli.demo.build import WIDTH, build_model
from prunesid_cli.demo.scenes import COLOURS, NUMBER, SHAPES, TRAIN, draw
from samples.embedded_model.align import align_projector
from samples.embedded_model.initialization import LOOK_BACK_HEADS, MATCHING_LAYERS, initialize_language
from samples.embedded_model.packing import encode
from samples.embedded_model.store import NUM_PATCHES, Store, is_non_scene, store_scene
from samples.embedded_model.train import make_tokenizer, word_token


def test_words_attend_to_similar_tokens_and_to_previous_words() -> None:
    model = build_model(0).eval()
    model.set_attn_implementation("eager")
    language, tokenizer = model.model.language_model, make_tokenizer()
    initialize_language(language, 0)
    table = language.get_input_embeddings().weight
    shown = table[[word_token(tokenizer)(shape) for shape in SHAPES]] - table.mean(0)
    question = torch.tensor(encode(tokenizer, "what colour is the star"))
    with torch.no_grad():
        out = language(inputs_embeds=torch.cat([shown, table[question]])[None], output_attentions=True)
    last = len(SHAPES) + len(question) - 1
    matching = [head for head in range(6) if head not in LOOK_BACK_HEADS]
    for layer in range(MATCHING_LAYERS):
        weights = out.attentions[layer][0, matching, last, : len(SHAPES)].mean(0)
        assert weights.argmax() == SHAPES.index("star")
    asking = range(last - len(question) + 4, last + 1)
    for head, words_back in LOOK_BACK_HEADS.items():
        weights = torch.stack([out.attentions[0][0, head, at].flip(0)[-1 - at :][:4] for at in asking]).mean(0)
        assert weights.argmax() == words_back, weights


@pytest.mark.slow
def test_visual_tokens_start_as_the_words_for_what_they_show() -> None:
    """The features are the codes of kind and colour plus noise."""
    rng = np.random.default_rng(0)
    codes = {name: rng.normal(size=WIDTH) for name in (*SHAPES, *COLOURS, NUMBER)}
    pictures = 120
    store = Store(
        rng.normal(0, 0.1, (pictures, 1 + NUM_PATCHES, WIDTH)).astype(np.float16),
        np.full((pictures, NUM_PATCHES), -1, dtype=np.int8),
    )
    for i in range(pictures):
        if is_non_scene(i):
            continue
        scene = store_scene(TRAIN, i)
        store.parts[i] = draw(scene).part
        for k, thing in enumerate(scene.parts):
            store.features[i, 1:][store.parts[i] == k] += codes[thing.kind] + codes[thing.colour]
    model, tokenizer = build_model(0), make_tokenizer()
    table = model.get_input_embeddings().weight
    projector = model.model.multi_modal_projector
    align_projector(projector, table, word_token(tokenizer), store, 0)
    right = []
    for i in range(pictures):
        for k, thing in enumerate(() if is_non_scene(i) else store_scene(TRAIN, i).parts):
            patches = torch.from_numpy(store.features[i, 1:][store.parts[i] == k]).float()
            with torch.no_grad():
                likeness = projector(patches) @ table[[word_token(tokenizer)(shape) for shape in SHAPES]].T
            if thing.kind in SHAPES:
                right += (likeness.argmax(-1) == SHAPES.index(thing.kind)).tolist()
    assert np.mean(right) > 0.95
