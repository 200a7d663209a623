"""Tables of paths: JSONL, CSV and Parquet files whose rows name images, and have columns for the answers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.containers import ContainerOptions
from prunesid_cli.inputs.listing import ListedFile, Listing
from prunesid_cli.inputs.table_files import MAX_LINE, expand_tables
from tests.conftest import PROMPT, Run

Row = dict[str, Any]


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, rows: list[Row], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: list[Row]) -> None:
    write_csv(path, rows, "\t")


def write_parquet(path: Path, rows: list[Row]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    ".jsonl": write_jsonl, ".csv": write_csv, ".tsv": write_tsv, ".parquet": write_parquet,
}  # fmt: skip


def rows_of(path: Path, image_column: str = "") -> list[ListedFile]:
    return list(expand_tables([str(path)], ContainerOptions(image_column)))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_name_images(suffix: str, tmp_path: Path) -> None:
    """Paths are relative to the table; URLs and absolute paths stay. Text with commas and line breaks is kept."""
    names = ["a b/1.png", "/x/2.jpg", "s3://b/3.png", "ü.png"]
    rows = [{"caption": f"a,\n{name}", "file_name": name, "n": str(number)} for number, name in enumerate(names)]
    WRITERS[suffix](tmp_path / f"t{suffix}", rows)
    found = rows_of(tmp_path / f"t{suffix}")
    assert [row.source for row in found] == [f"{tmp_path}/a b/1.png", "/x/2.jpg", "s3://b/3.png", f"{tmp_path}/ü.png"]
    assert [dict(row.columns) for row in found] == [{"caption": r["caption"], "n": r["n"]} for r in rows]
    chosen = rows_of(tmp_path / f"t{suffix}", "n")
    assert [row.source for row in chosen] == [f"{tmp_path}/{number}" for number in range(4)]
    with pytest.raises(UsageError, match="no column 'captain'") as refused:
        rows_of(tmp_path / f"t{suffix}", "captain")
    assert refused.value.hint.startswith("did you mean caption? it")
    with pytest.raises(UsageError, match="no column of paths, but x"):
        WRITERS[suffix](tmp_path / f"u{suffix}", [{"x": "1"}])
        rows_of(tmp_path / f"u{suffix}")


def test_bad_rows_fail_alone(tmp_path: Path) -> None:
    lines = [b'{"path": "1.png"}', b"no json", b"[1]", b'{"path": 7}', b'{"other": 1}', b"", b'{"path": "\xff.png"}',
             b'{"path": "' + b"x" * MAX_LINE + b'"}', b'{"path": "2.png", "v": NaN}']  # fmt: skip
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    rows = rows_of(tmp_path / "t.jsonl")
    assert [row.source for row in rows if not row.error] == [f"{tmp_path}/1.png", f"{tmp_path}/2.png"]
    assert dict(rows[-1].columns) == {"v": "nan"}
    reasons = [row.error.problem.partition(": ")[2][:20] for row in rows if row.error]
    assert reasons[:5] == ["not JSON", "not a JSON object", "no path in 'path'", "no path in 'path'", "not JSON"]
    (tmp_path / "t.csv").write_text("path,n\n1.png,1\n2.png\n3.png,3,4\n4.png,4\n")
    rows = rows_of(tmp_path / "t.csv")
    assert [row.source[-5:] for row in rows if not row.error] == ["1.png", "2.png", "4.png"]
    assert [dict(row.columns) for row in rows if not row.error] == [{"n": "1"}, {}, {"n": "4"}]
    assert [row.source for row in rows if row.error] == [f"{tmp_path}/t.csv, line 4"]


def test_columns_are_bounded(tmp_path: Path) -> None:
    """The headers of a cache hold them."""
    row = {"path": "1.png", "long": "x" * 10_000, "short": "y", "nested": {"a": [1, None]}}
    write_jsonl(tmp_path / "t.jsonl", [row])
    assert dict(rows_of(tmp_path / "t.jsonl")[0].columns) == {"short": "y", "nested": {"a": [1, None]}}


def test_rows_are_listed_like_named_files(tmp_path: Path) -> None:
    """Folders and globs too, each file once, by the first row that names it."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "c.txt"):
        (tmp_path / "in" / name).write_bytes(b"1")
    rows = [{"path": "in/b.png", "n": 1}, {"path": "in", "n": 2}, {"path": "in/*.png", "n": 3}, {"path": "x", "n": 4}]
    write_jsonl(tmp_path / "t.jsonl", rows)
    listing = Listing(expand_tables([str(tmp_path / "t.jsonl")], ContainerOptions()))
    found = [(file.source.removeprefix(f"{tmp_path}/"), dict(file.columns), bool(file.error)) for file in listing]
    assert found == [("in/b.png", {"n": 1}, False), ("in/a.png", {"n": 2}, False), ("x", {"n": 4}, True)]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [*((suffix, ()) for suffix in WRITERS), (".jsonl", ("--dynamic",)), (".jsonl", ("--workers", 2))],
)
def test_columns_come_with_the_answers(
    suffix: str, options: tuple[object, ...], run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    rows = [
        {"image": str(path), "id": f"q{number}", "answer": "truth", "label": str(number)}
        for number, path in enumerate(pictures[:4])
    ]
    WRITERS[suffix](tmp_path / f"t{suffix}", rows)
    cache = tmp_path / "c"
    ran = run("compress", tmp_path / f"t{suffix}", "--out", cache, *options)
    assert ran.code == 0, ran.err
    records = run("answer", cache, PROMPT).records
    assert [(r["source"], r["id"], r["input_answer"], r["label"]) for r in records] == [
        (row["image"], row["id"], row["answer"], row["label"]) for row in rows
    ]
    again = run("compress", tmp_path / f"t{suffix}", "--out", cache, *options)
    assert "nothing to do: 4 already in the cache" in again.err


def test_columns_come_into_a_table_of_answers(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    rows = [{"image": str(path), "id": f"q{number}", "label": str(number)} for number, path in enumerate(pictures[:4])]
    write_jsonl(tmp_path / "t.jsonl", rows)
    cache, file = tmp_path / "c", tmp_path / "answers.csv"
    assert run("compress", tmp_path / "t.jsonl", "--out", cache).code == 0
    run("answer", cache, "-p", PROMPT, "-p", "how many?", "--out", file)
    with file.open() as table:
        assert [(row["id"], row["label"]) for row in csv.DictReader(table)] == [
            (f"q{number}", f"{number}") for number in range(4) for _ in range(2)
        ]
    assert "all of 8 answers were there" in run("answer", cache, "-p", PROMPT, "-p", "how many?", "--out", file).err


def test_columns_that_changed_are_taken_over(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """The pictures did not change, so nothing is encoded again; a prompt's own field counts more than a column."""
    table, cache = tmp_path / "t.jsonl", tmp_path / "c"
    write_jsonl(table, [{"path": str(path), "label": "old", "n": 1} for path in pictures[:3]])
    run("compress", table, "--out", cache)
    write_jsonl(table, [{"path": str(path), "label": f"new {n}", "n": 1} for n, path in enumerate(pictures[:3])])
    ran = run("compress", table, "--out", cache, "--json")
    assert [record.get("copy") for record in ran.records] == [True] * 3
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT, "n": 2}))
    records = run("answer", cache, "--prompts", prompts).records
    assert [(record["label"], record["n"]) for record in records] == [(f"new {n}", 2) for n in range(3)]
    assert run("cache", "verify", cache).code == 0
    listed = run("cache", "ls", cache, "--json").records
    assert [record["columns"]["label"] for record in listed] == [f"new {n}" for n in range(3)]


def test_rows_that_failed_are_retried_with_their_columns(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    table, cache, late = tmp_path / "t.jsonl", tmp_path / "c", tmp_path / "late.png"
    write_jsonl(table, [{"path": str(pictures[0]), "n": 0}, {"path": "late.png", "n": 1}])
    assert run("compress", table, "--out", cache).code == 3
    late.write_bytes(pictures[1].read_bytes())
    assert run("compress", table, "--out", cache, "--retry-failed").code == 0
    assert [(r["source"], r["n"]) for r in run("answer", cache, PROMPT).records][1] == (str(late), 1)


def test_answers_stay_if_only_a_label_changed(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """Nothing is asked again, and the file has the new label. With fewer items, the other answers stay."""
    table, cache = tmp_path / "t.jsonl", tmp_path / "c"
    for suffix in (".jsonl", ".csv"):
        out = tmp_path / f"answers{suffix}"
        write_jsonl(table, [{"path": str(path), "label": f"{n}"} for n, path in enumerate(pictures[:4])])
        run("compress", table, "--out", cache)
        assert run("answer", cache, PROMPT, "--out", out).code == 0
        before = read_answers(out)
        write_jsonl(table, [{"path": str(path), "label": f"new {n}"} for n, path in enumerate(pictures[:4])])
        run("compress", table, "--out", cache)
        ran = run("answer", cache, PROMPT, "--out", out)
        assert (ran.code, "all of 4 answers were there" in ran.err) == (0, True), ran.err
        after = read_answers(out)
        assert [row["answer"] for row in after] == [row["answer"] for row in before]
        assert [row["label"] for row in after] == [f"new {n}" for n in range(4)]
        ran = run("answer", cache, PROMPT, "--out", out, "--limit", 2)
        assert (ran.code, "2 answers about other items stay" in ran.err) == (0, True), ran.err
        assert read_answers(out) == after
        assert run("answer", cache, PROMPT, "--out", out, "--limit", 2, "--forget").code == 0
        assert len(read_answers(out)) == 2
        assert "2 were there" in run("answer", cache, PROMPT, "--out", out).err


def read_answers(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
