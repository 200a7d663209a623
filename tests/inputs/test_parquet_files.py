"""Rows of Parquet files as inputs: images as bytes, as Hugging Face datasets store them, or as files beside."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.containers import ContainerOptions
from prunesid_cli.inputs.files import FILES, Files
from prunesid_cli.inputs.listing import ListedFile, Listing
from prunesid_cli.inputs.sharding import Partition
from prunesid_cli.inputs.table_files import expand_tables
from prunesid_cli.tokencache import open_cache
from tests.caches import items_by_source
from tests.cli.helpers import cache_files
from tests.conftest import PROMPT, Run

HF_IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
LONG_AGO = 10**9


def write_table(path: Path, columns: dict[str, Any], row_group_size: int = 4) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def listed(path: Path, **options: Any) -> list[ListedFile]:
    return list(Listing([str(path)], files=Files(ContainerOptions(**options))))


def names(path: Path, **options: Any) -> list[str]:
    return [file.source.removeprefix(f"{path}/") for file in listed(path, **options) if not file.error]


def read(path: Path, name: str) -> bytes:
    with FILES.open(f"{path}/{name}") as file:
        return file.read()


@pytest.fixture
def data() -> list[bytes]:
    return [bytes([number]) * (number * 7 + 1) for number in range(11)]


def as_struct(data: list[bytes]) -> pyarrow.Array:
    return pyarrow.array([{"bytes": part, "path": f"{number}.png"} for number, part in enumerate(data)], HF_IMAGE)


@pytest.mark.parametrize("is_struct", [False, True])
@pytest.mark.parametrize("row_group_size", [1, 4, 100])
def test_rows_are_read_in_any_order(tmp_path: Path, data: list[bytes], is_struct: bool, row_group_size: int) -> None:
    images = as_struct(data) if is_struct else data
    path = write_table(tmp_path / "x.parquet", {"a": range(11), "image": images, "b": ["t"] * 11}, row_group_size)
    rows = [f"row-{number:09d}" for number in range(11)]
    assert names(path) == rows and names(tmp_path) == [f"x.parquet/{row}" for row in rows]
    order = list(range(11)) * 2
    random.Random(0).shuffle(order)
    for number in [*range(11), *order]:
        assert read(path, rows[number]) == data[number]
        assert dict(FILES.columns(f"{path}/{rows[number]}")) == {"a": number, "b": "t"}
    for name in ("row-000000011", "row-", "1", "a=99", "other/row-000000001"):
        with pytest.raises(FileNotFoundError):
            FILES.stat(f"{path}/{name}")


def test_rows_are_named_by_an_id(tmp_path: Path, data: list[bytes]) -> None:
    ids = ["b", "a/1", "a 2", "100%", "..", "", "ü", "b", None, "=", "a\n"]
    path = write_table(tmp_path / "x.parquet", {"my id": ids, "image": data})
    files = listed(path, id_column="my id")
    found = [file.source.removeprefix(f"{path}/") for file in files if not file.error]
    assert found == [f"my id={name}" for name in ("b", "a%2F1", "a 2", "100%25", "..", "", "%C3%BC", "%3D", "a%0A")]
    (error,) = [file.error for file in files if file.error]
    assert "2 rows have no 'my id' of their own" in error.problem
    expected = [0, 1, 2, 3, 4, 5, 6, 9, 10]
    assert [read(path, name) for name in found] == [data[number] for number in expected]
    (error,) = [file.error for file in listed(path, id_column="my_id") if file.error]
    assert (error.problem, error.hint) == (
        f"{path}: no column 'my_id'", "did you mean my id? its columns: my id, image",
    )  # fmt: skip


def test_one_of_several_image_columns_is_chosen(tmp_path: Path, data: list[bytes]) -> None:
    columns = {"left": as_struct(data), "right side": as_struct(data[::-1]), "n": range(11)}
    path = write_table(tmp_path / "x.parquet", columns)
    (file,) = listed(path)
    assert file.error and "several columns with images: left, right side" in file.error.problem
    assert file.error.hint == "--image-column left"
    found = names(path, image_column="right side")
    assert found[1] == "right side/row-000000001" and read(path, found[1]) == data[-2]
    assert dict(FILES.columns(f"{path}/{found[1]}")) == {"n": 1}
    (file,) = listed(path, image_column="middle")
    assert file.error and "no column 'middle'" in file.error.problem
    with pytest.raises(UsageError, match="no column 'middle'"):  # a file that the user named
        list(expand_tables([str(path)], ContainerOptions(image_column="middle")))


def test_the_description_of_a_dataset_names_its_images(tmp_path: Path, data: list[bytes]) -> None:
    """`datasets` writes it into the metadata. Audio has the same type as an image."""
    table = pyarrow.table({"audio": as_struct(data), "photo": as_struct(data[::-1])})
    info = b'{"info": {"features": {"audio": {"_type": "Audio"}, "photo": {"_type": "Image"}}}}'
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"huggingface": info}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", names(tmp_path / "x.parquet")[0]) == data[-1]


def test_images_beside_the_table(tmp_path: Path, data: list[bytes]) -> None:
    """A dataset whose images are not embedded has their paths, which lead nowhere else."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.png").write_bytes(b"first")
    paths = ["a/0.png", "a/1.png", "../x.png", "/etc/passwd", None, f"{tmp_path}/a/0.png"]
    images = pyarrow.array([{"bytes": None, "path": name} for name in paths], HF_IMAGE)
    path = write_table(tmp_path / "x.parquet", {"image": images})
    assert read(path, "row-000000000") == read(path, "row-000000005") == b"first"
    for row, reason in enumerate(("is not there", "not below", "not below", "has no image"), 1):
        with pytest.raises(OSError, match=reason):
            read(path, f"row-{row:09d}")


def test_a_table_without_images_in_a_folder_is_another_file(tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet", {"text": ["a"], "n": [1]})
    listing = Listing([str(tmp_path)])
    assert list(listing) == [] and listing.skipped == {"other file": 1}
    (file,) = listed(tmp_path / "x.parquet")
    assert file.error and "no column with images" in file.error.problem


@pytest.mark.parametrize("damage", ["empty", "text", "half", "tail", *range(12)])
def test_a_damaged_file_is_an_error(tmp_path: Path, damage: str | int, pictures: list[Path], run: Run) -> None:
    """Whatever byte is wrong: no crash, and the other inputs are compressed."""
    path = write_table(tmp_path / "x.parquet", {"image": [path.read_bytes() for path in pictures]})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    if isinstance(damage, int):
        generator = random.Random(damage)
        start = 0 if damage % 2 else len(whole) - 800  # of the rows, or of the description at the end
        for _ in range(8):
            flipped[generator.randrange(start, len(whole))] ^= 1 << generator.randrange(8)
    changed = {"empty": b"", "text": b"text" * 99, "half": whole[: len(whole) // 2], "tail": whole[:-9]}
    path.write_bytes(bytes(flipped) if isinstance(damage, int) else changed[damage])
    ran = run("compress", path, pictures[0], "--out", tmp_path / "c", "--json")
    assert ran.code in (0, 3) and "Traceback" not in ran.err and "bug" not in ran.err, ran.err
    assert ran.code == 3 or isinstance(damage, int)
    assert str(pictures[0]) in items_by_source(tmp_path / "c")


def test_rows_are_inputs_like_files(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """The same tokens and answers; columns are copied to the answers; a bad row fails alone."""
    images = [*(path.read_bytes() for path in pictures), b"no image", None]
    columns = {"image": images, "id": [f"q{n}" for n in range(12)], "answer": ["truth"] * 12, "n": range(12)}
    path = write_table(tmp_path / "x.parquet", columns)
    ran = run("compress", path, "--out", tmp_path / "rows", "--id-column", "id", "--dynamic", "-k", 40)
    assert (ran.code, f"{path}/id=q10" in ran.err, f"{path}/id=q11: the row has no image" in ran.err) == (3, True, True)
    run("compress", pictures[0].parent, "--out", tmp_path / "files", "--dynamic", "-k", 40)
    rows, files = (run("answer", tmp_path / name, PROMPT).records for name in ("rows", "files"))
    assert [(r["answer"], r["kept"]) for r in rows] == [(r["answer"], r["kept"]) for r in files]
    assert [(r["id"], r["n"], r["input_answer"]) for r in rows] == [(f"q{n}", n, "truth") for n in range(10)]
    assert "nothing to do" in run("compress", path, "--out", tmp_path / "rows", "--id-column", "id", "--limit", 9,
                                  "--dynamic", "-k", 40).err  # fmt: skip
    assert run("cache", "gc", tmp_path / "rows").err.startswith("removed 0 missing inputs")
    again = run("compress", path, "--out", tmp_path / "rows", "--id-column", "id", "--retry-failed", "--dynamic",
                "-k", 40)  # fmt: skip
    assert again.code == 3 and "q11" in again.err


def test_columns_that_changed_are_taken_over(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """Nothing is encoded again, and the tokens stay."""
    images, cache = [path.read_bytes() for path in pictures[:3]], tmp_path / "c"
    path = write_table(tmp_path / "x.parquet", {"image": images, "label": ["a", "b", "c"]})
    run("compress", path, "--out", cache)
    write_table(path, {"image": images, "label": ["a", "new", "c"], "more": [1, 2, 3]})
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
    ran = run("compress", path, "--out", cache, "--json")
    assert [("copy" in record, "tokens" in record) for record in ran.records] == [(True, False)] * 3
    records = run("answer", cache, PROMPT).records
    assert [(record["label"], record["more"]) for record in records] == [("a", 1), ("new", 2), ("c", 3)]
    assert run("cache", "verify", cache).code == 0
    assert "3 earlier versions" in run("cache", "gc", cache).err
    assert run("cache", "verify", cache).code == 0 and len(open_cache(cache)) == 3
    assert "nothing to do: 3 already in the cache" in run("compress", path, "--out", cache).err


def test_workers_read_rows(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", {"image": [path.read_bytes() for path in pictures], "n": range(10)})
    for workers in (0, 2):
        assert run("compress", path, "--out", tmp_path / f"{workers}", "--workers", workers).code == 0
    assert cache_files(tmp_path / "0") == cache_files(tmp_path / "2")
    assert [item.columns for item in items_by_source(tmp_path / "2").values()] == [(("n", n),) for n in range(10)]


def test_a_partition_takes_whole_files() -> None:
    parts = [Partition(number, 4) for number in (1, 2, 3, 4)]
    for file in range(20):
        takers = {part.number for part in parts for n in range(30) if part.takes(f"in/{file}.parquet/row-{n:09d}")}
        assert len(takers) == 1


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path, data: list[bytes]) -> None:
    path = write_table(tmp_path / "x.parquet", {"image": data})
    assert read(path, "row-000000000") == data[0]
    shutil.copy(write_table(tmp_path / "y.parquet", {"image": [b"another"] * 3}), path)
    assert read(path, "row-000000000") == b"another" and len(names(path)) == 3


@pytest.mark.parametrize("described", [b"no json", b"[]", b'{"info": 3}', b'{"info": {"features": {"image": 7}}}'])
def test_a_description_that_cannot_be_right_fails_alone(
    described: bytes, run: Run, tmp_path: Path, pictures: list[Path]
) -> None:
    table = pyarrow.table({"image": [b"1"]}).replace_schema_metadata({b"huggingface": described})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    ran = run("compress", tmp_path / "x.parquet", pictures[0], "--out", tmp_path / "c")
    assert (ran.code, "x.parquet: a damaged Parquet file" in ran.err, "bug" in ran.err) == (3, True, False), ran.err
    assert list(items_by_source(tmp_path / "c")) == [str(pictures[0])]
