"""Speedup by reading the common prefix of prompts about one item only once: `python -m tests.benchmarks.prefill`.

Answers the same prompts from the same token sets with and without a shared prefix, in turns; the ratio is that of the
fastest turns. Runs on the embedded model with all 576 visual tokens kept, and on a LLaVA with random weights of the
size of the smallest real language models.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from prunesid_cli.demo.build import SPECIAL_TOKENS, build_processor, build_tokenizer
from prunesid_cli.models import load_family
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.pipeline.answer import answer
from prunesid_cli.pipeline.query import Query
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.tokencache import CacheWriter, Entry, Run, open_cache
from prunesid_cli.types import Generation, Layout, Placement, Provenance, Region, TokenSet

SIDE, NEW, BATCH, ITEMS = 24, 8, 16, 4
CPU = Placement(torch.device("cpu"), torch.float32, "sdpa")
QUESTION = "is there a star left of the red ring and what colour is it how many shapes are"
WORDS = QUESTION.split()


def make(folder: Path) -> None:
    """Write a model with about 100 M random parameters."""
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, image_size=336,
        patch_size=14, projection_dim=64,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=SPECIAL_TOKENS.index("<image>"))
    build_processor(build_tokenizer(["USER: \n ASSISTANT: " + QUESTION] * 4)).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


def cached(folder: Path, width: int, items: int) -> None:
    """Write random token sets of a tower of this width, all kept: their values make no difference to time."""
    slots, layout = tuple(range(SIDE**2)), Layout("<image>", (SIDE**2,), (Region(0, SIDE, SIDE, SIDE),))
    writer = CacheWriter(folder, Run("random", "-", "llava", "none", "all", False, False, "float32"), "-")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for number in range(items):
            tokens = TokenSet(torch.randn(SIDE**2, width), slots, layout, True)
            provenance = Provenance(source=f"{number}.png", digest=str(number), size=(336, 336), notes=())
            writer.add(Entry(provenance=provenance, tokens=tokens, phi=0.5))
    writer.complete()
    writer.close()


def prompts(count: int) -> list[str]:
    """Prompts of 4 to 9 words."""
    return [" ".join(WORDS[(number + i) % len(WORDS)] for i in range(4 + number % 6)) + "?" for number in range(count)]


def queries(cache: Path, items: int, count: int) -> Iterator[Query]:
    chosen = list(open_cache(cache).items())[:items]
    pairs = [(text, found) for found in chosen for text in prompts(count)]
    for number, (text, (shard, item)) in enumerate(pairs):
        yield Query(number, text, shard, item)


def seconds(language: LanguageHalf, asked: list[Query], shares: bool) -> tuple[float, list[str]]:
    kept, language.can_share_prefix = language.can_share_prefix, shares
    began = time.perf_counter()
    replies = [
        one
        for some in answer(language, asked, Generation(max_new_tokens=NEW), BatchSizeTuner.fixed(BATCH))
        for one in some
    ]
    language.can_share_prefix = kept
    return time.perf_counter() - began, [one.answer.text for one in replies if one.answer]


def measure(language: LanguageHalf, cache: Path, count: int, rounds: int) -> dict[str, Any]:
    """Of one item, or as many as make four queries."""
    asked = list(queries(cache, max(1, ITEMS // count), count))
    turns = [(seconds(language, asked, False), seconds(language, asked, True)) for _ in range(rounds)]
    separate, shared = (min(turn[side][0] for turn in turns) for side in (0, 1))
    same = all(turn[0][1] == turn[1][1] for turn in turns)
    ratio = separate / shared
    return {"prompts": count, "separate_s": separate, "shared_s": shared, "times": ratio, "same answers": same}


def main() -> None:
    parser = argparse.ArgumentParser(description="Shared against separate reading of the prefix of prompts.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "random")
        for model, location in (("embedded", DEMO), ("random, 100 M", str(folder / "random"))):
            checkpoint = resolve(location)
            language = load_family("llava").load_language_half(checkpoint, CPU)
            size = sum(parameter.numel() for parameter in language.model.parameters())
            cached(folder / model, language.model.config.vision_config.hidden_size, ITEMS)
            for count in (1, 4, 8, 16):
                found = measure(language, folder / model, count, options.rounds)
                results.append({"model": model, "parameters": size} | found)
                print(
                    f"{model:14} {size / 1e6:5.1f} M  {count:2} prompts an item  separate {found['separate_s']:6.2f} s"
                    f"  shared {found['shared_s']:6.2f} s  {found['times']:.2f} times  same {found['same answers']}",
                    flush=True,
                )
    if options.out:
        about = {
            "date": date.today().isoformat(),
            "command": f"python -m tests.benchmarks.prefill --rounds {options.rounds}",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": "two CPU cores shared with other work: ratios of turns taken one after the other, not seconds",
            "new tokens": NEW,
            "batch": BATCH,
        }
        options.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
