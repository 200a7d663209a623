"""Pages of PDF documents as inputs."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.containers import ContainerOptions
from prunesid_cli.inputs.files import FILES, Files
from prunesid_cli.inputs.image import load_image
from prunesid_cli.inputs.listing import ListedFile, Listing
from tests.caches import items_by_source
from tests.conftest import PROMPT, Run

LONG_AGO = 10**9


def write_pdf(path: Path, sizes: list[tuple[int, int]]) -> Path:
    """A PDF with a page for each size in points. Page n has the colour (20 n, 0, 100), and is white on its right."""
    pages = []
    for number, size in enumerate(sizes):
        page = Image.new("RGB", size, (20 * number, 0, 100))
        page.paste((255, 255, 255), (size[0] // 2, 0, size[0], size[1]))
        pages.append(page)
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=72, quality=100)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def listed(path: Path, **options: int) -> list[ListedFile]:
    return list(Listing([str(path)], files=Files(ContainerOptions(**options))))  # type: ignore[arg-type]


def test_pages_are_pictures(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [(144, 72), (72, 144), (36, 36)])
    names = [file.source for file in listed(path)]
    assert names == [f"{path}/page-{number:04d}" for number in (1, 2, 3)] == [f.source for f in listed(tmp_path)]
    pages = [load_image(name).image for name in names]
    assert [page.size for page in pages] == [(300, 150), (150, 300), (75, 75)]
    for number, page in enumerate(pages):
        red, green, blue = page.getpixel((10, 10))  # type: ignore[misc]
        assert abs(red - 20 * number) < 4 and green < 4 and abs(blue - 100) < 4
        assert page.getpixel((page.width - 10, 10)) == (255, 255, 255)
    assert [load_image(name).digest for name in names] == [load_image(name).digest for name in names]
    for name in ("page-0000", "page-0004", "page-1@x", "other"):
        with pytest.raises(FileNotFoundError):
            FILES.stat(f"{path}/{name}")


def test_the_resolution_is_part_of_the_name(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [(144, 72)] * 2)
    names = [file.source for file in listed(path, dpi=72)]
    assert names == [f"{path}/page-0001@72dpi", f"{path}/page-0002@72dpi"]
    assert load_image(names[1]).size == (144, 72)
    with pytest.raises(MediaError, match="pixels at 9999 dpi") as refused:
        load_image(f"{path}/page-0001@9999dpi")
    assert refused.value.hint == "choose a smaller --dpi"
    with pytest.raises(MediaError, match="not in .*a.pdf") as refused:
        load_image(f"{path}/page-0003")
    assert refused.value.hint == f"name what is in it, as {path}/page-0001"


def test_a_document_with_many_pages_is_listed_in_order(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [(2, 2)] * 120)
    assert [file.source[-4:] for file in listed(path)] == [f"{number:04d}" for number in range(1, 121)]


@pytest.mark.parametrize("damage", ["empty", "text", "half", *range(8)])
def test_a_damaged_document_is_an_error(tmp_path: Path, damage: str | int, pictures: list[Path], run: Run) -> None:
    """No crash, and the other inputs are compressed. PDFium repairs what it can."""
    path = write_pdf(tmp_path / "a.pdf", [(144, 72)] * 3)
    data = bytearray(path.read_bytes())
    if isinstance(damage, int):
        generator = random.Random(damage)
        for _ in range(30):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    else:
        data = {"empty": b"", "text": b"text" * 99, "half": data[: len(data) // 2]}[damage]  # type: ignore[assignment]
    path.write_bytes(data)
    ran = run("compress", path, pictures[0], "--out", tmp_path / "c")
    assert ran.code in (0, 3) and "Traceback" not in ran.err and "bug" not in ran.err, ran.err
    assert damage not in ("empty", "text") or (ran.code == 3 and "a damaged PDF document, or another file" in ran.err)
    assert str(pictures[0]) in items_by_source(tmp_path / "c")


def test_pages_are_asked_and_cached(run: Run, tmp_path: Path) -> None:
    path, cache = write_pdf(tmp_path / "a.pdf", [(144, 144)] * 3), tmp_path / "c"
    assert run("compress", path, "--out", cache, "--dpi", 100, "--workers", 2).code == 0
    sources = [f"{path}/page-{number:04d}@100dpi" for number in (1, 2, 3)]
    assert list(items_by_source(cache)) == sources
    assert [item.size for item in items_by_source(cache).values()] == [(200, 200)] * 3
    answers = [record["answer"] for record in run("answer", cache, PROMPT).records]
    asked = [record["answer"] for record in run("ask", "--each", *sources, PROMPT).records]
    assert answers == asked
    assert "nothing to do: 3 already" in run("compress", path, "--out", cache, "--dpi", 100).err
    result = run("ask", path, PROMPT)
    assert result.code == 1 and f"name one, as {path}/page-0001, or all of them: --each" in result.err
    assert len(run("ask", "--each", path, PROMPT).records) == 3
    path.unlink()
    assert "removed 3 missing inputs" in run("cache", "gc", cache, "--force").err


def test_without_the_package_a_document_is_another_file(
    run: Run, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from prunesid_cli.inputs import containers

    path = write_pdf(tmp_path / "in.pdf", [(9, 9)])
    (tmp_path / "in").mkdir()
    shutil.copy(path, tmp_path / "in/a.pdf")
    shutil.copy(pictures[0], tmp_path / "in")
    containers.open_container.cache_clear()
    monkeypatch.setattr(containers, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    monkeypatch.delitem(sys.modules, "prunesid_cli.inputs.pdf_files", raising=False)
    ran = run("compress", tmp_path / "in", "--out", tmp_path / "c")
    assert (ran.code, "1 other file skipped" in ran.err) == (0, True), ran.err
    ran = run("compress", path, "--out", tmp_path / "c")
    assert (ran.code, "needs pypdfium2" in ran.err, "pip install 'prunesid[pdf]'" in ran.err) == (2, True, True)
