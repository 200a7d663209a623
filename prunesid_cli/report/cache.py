"""The page of a cache: what it keeps of each input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prunesid_cli.report.page import VISUAL_TOKENS, write_page
from prunesid_cli.report.pictures import Pictures
from prunesid_cli.text import plural
from prunesid_cli.tokencache import Cache, Item, Shard
from prunesid_cli.visualization.patches import to_patch_record

SETTING = "kept"
TERMS = {
    "visual tokens": VISUAL_TOKENS,
    "information": "How little the patches resemble each other: 1 minus their mean similarity (Eq. 7 of the paper). A "
    "dynamic budget gives more tokens to pictures with more of it.",
}


def write_cache_page(
    path: Path, cache: Cache, items: Iterable[tuple[Shard, Item]], on_item: Callable[[], object] = lambda: None
) -> None:
    """Write the page of a cache.

    Args:
        path: The page, checked by `page.check_page`.
        cache: The cache.
        items: Which of its items are shown.
        on_item: Called after each item.

    Raises:
        PruneSIDError: The page cannot be written.
    """
    pictures, shown = Pictures(), list[dict[str, Any]]()
    total = kept = 0
    for _, item in items:
        patches = to_patch_record(item.layout, None if item.is_unpruned else item.slots)
        pictures.add(item.source, item.source, patches)
        total, kept = total + item.layout.total, kept + item.kept
        facts = [f"{item.kept:,} of {item.layout.total:,} visual tokens", "{} x {} pixels".format(*item.size)]
        facts += [f"information {item.phi:.3f}", *item.notes, *(f"{name}: {value}" for name, value in item.columns)]
        answer = {"text": "", "kept": item.kept, "patches": [patches]}
        shown.append({"media": [item.source], "answers": {SETTING: answer}, "facts": facts})
        on_item()
    run, facts = cache.run, [f"{plural(len(shown), 'item')} of {len(cache):,}"]
    if run:
        facts = [f"model {run.model}", f"{run.method} {run.keep}", *facts]
    facts.append(f"{kept:,} of {total:,} visual tokens")
    data = {
        "noun": "item",
        "settings": [{"name": SETTING, "label": SETTING}],
        "first": SETTING,
        "media": pictures.panels,
        "records": shown,
    }
    write_page(path, f"What {cache.folder} keeps", facts, data, terms=TERMS)
