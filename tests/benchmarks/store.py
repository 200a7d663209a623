"""Effect of compact token stores on answers of the embedded model: `python -m tests.benchmarks.store`.

The same questions are asked about the same kept tokens, packed and unpacked as a cache does it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.runtime.batch_size import batched
from prunesid_cli.selection.budget import Budget
from prunesid_cli.tokencache import STORES
from prunesid_cli.types import TokenSet
from samples.embedded_model.evaluate import GENERATION, make_exam


def packed(tokens: TokenSet, store: str) -> TokenSet:
    rows = STORES[store].unpack(*STORES[store].pack(tokens.tokens))
    return replace(tokens, tokens=rows.to(tokens.tokens.dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description="Effect of compact token stores on answers.")
    parser.add_argument("--per-kind", type=int, default=100, help="questions of each kind")
    parser.add_argument("--keep", default="11%")
    parser.add_argument("--out", type=Path, help="write JSON here")
    given = parser.parse_args()
    checkpoint = resolve(DEMO)
    family = load_family(checkpoint.model_type)
    placement = choose_placement("auto", "auto", "auto", load_config(checkpoint))
    pruner = Pruner(family.load_vision_half(checkpoint, placement), Budget.parse(given.keep), "prunesid", ())
    language = family.load_language_half(checkpoint, placement)
    asked = [
        (pruner.prune(picture.encoded)[0], question)
        for picture in make_exam(pruner, given.per_kind, 1)
        for question in picture.questions
    ]
    said = dict[str, list[str]]()
    found = {}
    for store in STORES:
        rows = [(packed(tokens, store), question) for tokens, question in asked]
        said[store] = [
            answer.text
            for batch in batched(rows, 32)
            for answer in language.generate([language.embed(q.prompt, [kept]) for kept, q in batch], GENERATION)
        ]
        right = [text == question.answer for text, (_, question) in zip(said[store], asked, strict=True)]
        same = [text == own for text, own in zip(said[store], said["model"], strict=True)]
        errors = [
            ((own.tokens - tokens.tokens).norm(dim=1) / tokens.tokens.norm(dim=1)).mean()
            for (own, _), (tokens, _) in zip(rows, asked, strict=True)
        ]
        found[store] = {
            "right": sum(right) / len(right),
            "same answer": sum(same) / len(same),
            "relative error": float(torch.stack(errors).mean()),
        }
        print(f"{store:8}" + "".join(f"{name} {value:.4f}   " for name, value in found[store].items()), flush=True)
    if given.out:
        facts = {
            "command": "python -m tests.benchmarks.store " + shlex.join(sys.argv[1:]),
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "model": checkpoint.revision,
            "questions": len(asked),
        }
        given.out.write_text(json.dumps(facts | {"results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
