"""Shards: what is written is read, byte for byte; anything else is refused with a hint."""

from __future__ import annotations

import json
import struct
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import Entry, Item, journal, open_cache, read_header, read_tokens, verify_shard
from prunesid_cli.tokencache.format import FORMAT
from prunesid_cli.types import Columns, Provenance
from tests.caches import RUN, edit_header, items_by_source, make_entries, make_entry, with_digest, write_shard


def read_body(path: Path) -> dict:
    """Read the JSON of a shard with nothing but the standard library, as another program would."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return json.loads(header["__metadata__"]["prunesid"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    entries = [make_entry(number, number + 1, dtype) for number in range(5)]
    run = replace(RUN, dtype=str(dtype).removeprefix("torch."))
    shard = read_header(write_shard(tmp_path, 0, run, "0.0", entries))
    assert shard.run == run
    for entry, item, tokens in zip(entries, shard.items, read_tokens(shard, shard.items), strict=True):
        assert (item.provenance, item.phi) == (entry.provenance, entry.phi)
        assert torch.equal(tokens.tokens, entry.tokens.tokens)
        assert replace(tokens, tokens=entry.tokens.tokens) == entry.tokens
    assert verify_shard(shard) == []


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, RUN, "0.0", make_entries(2))
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert set(header) == {"__metadata__", "tokens"}
    assert set(header["__metadata__"]) == {"prunesid"}
    body = read_body(path)
    assert set(body) == {"format", "number", "tool", "run", "items", "layouts", "tensors", "check"}
    item = body["items"][1]
    assert (item["rows"], item["slots"], item["whole"], item["layout"]) == ([3, 6], [-1, 0, 1], False, 0)
    (layout,) = body["layouts"]
    assert (layout["text"], layout["runs"], layout["advances"]) == ("<image>", [6], [])
    assert [layout["regions"][0][name] for name in ("first", "rows", "columns", "stride")] == [0, 2, 3, 3]
    start, row_bytes = 8 + length, 4 * 4
    values = struct.unpack("<12f", data[start + 3 * row_bytes : start + 6 * row_bytes])
    assert values == tuple(float(value + 1) for value in range(12))


VALUES = {
    str: "a text",
    int: 7,
    float: 0.5,
    bool: True,
    Columns: (("id", 7), ("label", "a cat"), ("tags", ["a", None])),
}
"""Type -> a value that is no default."""
TYPES = get_type_hints(Provenance)
OPTIONAL_VALUES = {
    field.name: next(
        value for kind, value in VALUES.items() if kind in (TYPES[field.name], *get_args(TYPES[field.name]))
    )
    for field in fields(Provenance)
    if field.default is not MISSING
}
"""Field of `Provenance` with a default -> another value."""


@pytest.mark.parametrize("present", [(), *((name,) for name in OPTIONAL_VALUES), tuple(OPTIONAL_VALUES)])
def test_optional_fields_of_an_input_are_stored_only_where_they_are_set(
    tmp_path: Path, present: tuple[str, ...]
) -> None:
    """A field of `Provenance` is written and read without further code; if it has a default, old caches stay valid."""
    required = {"source", "digest", "size", "notes"}
    assert {field.name for field in fields(Provenance)} == required | set(OPTIONAL_VALUES), "give a new field a default"
    entry = make_entry(0)
    provenance = replace(entry.provenance, **{name: OPTIONAL_VALUES[name] for name in present})
    path = write_shard(tmp_path, 0, RUN, "0.0", [replace(entry, provenance=provenance)])
    (record,) = read_body(path)["items"]
    assert set(record) & {field.name for field in fields(Provenance)} == required | set(present)
    (item,) = read_header(path).items
    assert item.provenance == provenance


def test_every_field_of_an_item_is_stored(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, RUN, "0.0", [make_entry(0)])
    (record,) = read_body(path)["items"]
    expected = {field.name for field in fields(Item)} - set(OPTIONAL_VALUES)
    expected = expected - {"is_unpruned", "shard"} | {"whole"}  # only a copy has the number of a shard
    assert set(record) == expected


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, RUN, "0.0", make_entries(2))
    data = path.read_bytes()
    for offset in range(len(data)):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        try:
            shard = read_header(path)
        except CacheError:
            continue
        assert len(verify_shard(shard)) == 1, offset
        with pytest.raises(CacheError, match="damaged"):
            list(read_tokens(shard, shard.items))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, RUN, "0.0", make_entries(2))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CacheError) as caught:
            open_cache(tmp_path)
        assert caught.value.hint


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FORMAT", FORMAT + 1)
    write_shard(tmp_path, 0, RUN, "0.0", [make_entry(0)])
    monkeypatch.undo()
    with pytest.raises(CacheError, match=f"newer than {FORMAT}") as caught:
        open_cache(tmp_path)
    assert "upgrade" in caught.value.hint


def test_a_field_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, RUN, "0.0", [make_entry(0)])
    for name in ("run", "items", "layouts"):

        def add_field(body: dict[str, Any], name: str = name) -> None:
            record = body[name] if name == "run" else body[name][0]
            record["camera"] = "X100"

        edit_header(path, add_field)
        with pytest.raises(CacheError, match="a field 'camera', which a later version added") as caught:
            read_header(path)
        assert "upgrade" in caught.value.hint
        write_shard(tmp_path, 0, RUN, "0.0", [make_entry(0)])


def test_a_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "no such cache"), (tmp_path, "not a prunesid cache")):
        with pytest.raises(CacheError, match=words):
            open_cache(folder)


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Not in that of their names: 99999 comes before 100000."""
    for version, number in enumerate((99999, 100000)):
        entry: Entry = with_digest(make_entry(0), f"{version:064x}")
        write_shard(tmp_path, number, RUN, "0.0", [entry])
    assert items_by_source(tmp_path)["0.png"].digest == f"{1:064x}"
