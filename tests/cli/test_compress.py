"""The compress command: which inputs it stores, which it skips and lists, and which caches it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import CacheWriter, open_cache
from tests import hostile
from tests.caches import items_by_source
from tests.cli.helpers import cache_files
from tests.conftest import PROMPT, Run


def test_the_batch_size_changes_neither_tokens_nor_answers(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    slots, answers = [], []
    for batch_size in (1, 3, 8):
        out = tmp_path / str(batch_size)
        assert run("compress", *pictures, "--out", out, "-m", llava, "--batch-size", batch_size).code == 0
        slots.append([item.slots for item in items_by_source(out).values()])
        records = run("answer", out, PROMPT, "--batch-size", batch_size).records
        answers.append([record["answer"] for record in records])
    assert len(slots[0]) == len(answers[0]) == len(pictures)
    assert slots[0] == slots[1] == slots[2]
    assert answers[0] == answers[1] == answers[2]


def test_same_command_same_bytes(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("compress", pictures[0].parent, "--out", tmp_path / name, "-m", llava)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir()) != []
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_an_empty_folder_gives_a_warning(run: Run, llava: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = run("compress", tmp_path / "in", "--out", tmp_path / "c", "-m", llava)
    assert (result.code, result.err) == (0, "warning: nothing to do: no images or clips found\n")
    assert run("cache", "ls", tmp_path / "c").code == 0


def test_unreadable_pictures_are_skipped_listed_and_retried(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(pictures[0], folder / "good.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"hello " * 40)
    jpeg = hostile.encoded(hostile.noise(), "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "readme.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"")
    result = run("compress", folder, tmp_path / "missing.jpg", "--out", tmp_path / "c", "-m", llava)
    assert result.code == 3
    assert re.search(r"compressed 1 image .* 1 hidden file skipped .* 1 other file skipped .* 4 failed", result.err)
    failed = run("cache", "ls", tmp_path / "c", "--failed", "--json").records
    assert {Path(record["source"]).name for record in failed} == {"empty.jpg", "text.jpg", "cut.jpg", "missing.jpg"}
    assert all(record["error"] and record["hint"] for record in failed)
    listed = run("cache", "ls", tmp_path / "c", "--failed").out
    assert f"{folder}/empty.jpg\tempty file\n" in listed
    shutil.copy(pictures[1], folder / "cut.jpg")
    again = run("compress", folder, "--out", tmp_path / "c", "-m", llava, "-v")
    assert (again.code, "1 already in the cache" in again.err) == (3, True)
    verbose_lines = [
        f"llava model {llava}, revision ",
        "device cpu, dtype torch.float32, attention sdpa",
        f"{folder}/good.png: already in the cache",
        f"{folder}/cut.jpg: 63 of 576 visual tokens",
        f"{folder}/readme.txt: other file, skipped",
        f"{folder}/.hidden.png: hidden file, skipped",
    ]
    assert all(words in again.err and words not in result.err for words in verbose_lines), again.err
    assert len(run("cache", "ls", tmp_path / "c").out.splitlines()) == 2
    failed = run("cache", "ls", tmp_path / "c", "--failed", "--json").records
    assert {Path(record["source"]).name for record in failed} == {"empty.jpg", "text.jpg", "missing.jpg"}


def test_unusual_pictures_are_read_with_a_note(run: Run, llava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    data_by_name = {
        "animated.gif": hostile.animated("GIF"),
        "cmyk.jpg": hostile.encoded(hostile.landmark().convert("CMYK"), "JPEG"),
        "grey16.png": hostile.grey16([0, 32768, 65535]),
        "palette.png": hostile.encoded(hostile.landmark().quantize(16), "PNG", transparency=3),
        "rotated.jpg": hostile.turned(6, "JPEG"),
    }
    for name, data in data_by_name.items():
        (folder / name).write_bytes(data)
    (folder / "bomb.png").write_bytes(hostile.bomb(20_000, 20_000))
    result = run("compress", folder, "--out", tmp_path / "c", "-m", llava)
    assert (result.code, "compressed 5 images" in result.err) == (3, True)
    for words in ("animated, 3 frames: the first is used", "16-bit grey", "CMYK", "limit of 100 megapixels"):
        assert words in result.err
    (item,) = [item for source, item in items_by_source(tmp_path / "c").items() if source.endswith("rotated.jpg")]
    assert item.size == hostile.landmark().size
    assert items_by_source(tmp_path / "c")[str(folder / "animated.gif")].notes != ()


def test_a_cache_of_another_model_or_run_is_refused(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    run("compress", pictures[0], "--out", tmp_path / "c", "-m", llava)
    other = run("compress", pictures[0], "--out", tmp_path / "c", "-m", llava, "-k", "12")
    assert (other.code, "made with keep 11%, not 12" in other.err) == (1, True)
    changed = tmp_path / "changed"
    shutil.copytree(llava, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    result = run("answer", tmp_path / "c", PROMPT, "-m", changed)
    assert (result.code, result.out) == (1, "")
    assert "the cache holds tokens of" in result.err
    moved = tmp_path / "moved"
    shutil.copytree(llava, moved)
    assert run("answer", tmp_path / "c", PROMPT, "-m", moved).code == 0


def test_a_second_writer_is_refused(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    assert run("compress", pictures[0], "-m", llava, "--out", tmp_path).code == 0
    cache_run = open_cache(tmp_path).run
    assert cache_run
    first = CacheWriter(tmp_path, cache_run, "0.0")
    with pytest.raises(CacheError, match="another run is writing"):
        CacheWriter(tmp_path, cache_run, "0.0")
    refused = run("compress", pictures[1], "-m", llava, "--out", tmp_path)
    assert (refused.code, "another run is writing" in refused.err) == (1, True)
    first.close()
    assert run("compress", pictures[1], "-m", llava, "--out", tmp_path).code == 0


def test_a_refused_cache_hints_at_its_options(run: Run, llava: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    (folder / "bad.png").write_bytes(b"no picture")
    options = ("-m", llava, "-k", "12", "--method", "random", "--dynamic")
    assert run("compress", folder, "--out", out, *options).code == 3
    result = run("compress", tmp_path, "--retry-failed", "--out", out, "-k", "13", "--fixed")
    hint = f"continue it with --model {llava} --method random --keep 12 --dynamic, or name another --out"
    assert (result.code, hint in " ".join(result.err.split())) == (1, True), result.err
    typed = ("--model", llava, "--method", "random", "--keep", "12", "--dynamic")
    result = run("compress", tmp_path, "--retry-failed", "--out", out, *typed)
    assert (result.code, "bad.png" in result.err) == (3, True), result.err
    result = run("compress", tmp_path, "--retry-failed", "--out", out, *typed, "--store", "int8")
    assert "hint: continue it with --store model, or" in result.err, result.err


def test_files_are_chosen_by_globs_and_a_limit(run: Run, folder: Path, tmp_path: Path) -> None:
    """What is left out is counted. A limited run continues, and one about other files is not complete."""
    names = sorted(path.name for path in folder.iterdir())
    cache = tmp_path / "cache"

    def cached() -> list[str]:
        return [Path(record["source"]).name for record in run("cache", "ls", cache, "--json").records]

    ran = run("compress", folder, "--out", cache, "--limit", 2)
    assert (ran.code, cached()) == (0, names[:2])
    ran = run("compress", folder, "--out", cache, "--include", "scene[0-4].png", "--exclude", f"*/{names[3]}")
    assert (ran.code, cached()) == (0, [*names[:3], names[4]])
    assert "6 filtered files skipped" in ran.err
    ran = run("compress", folder, "--out", cache, "--limit", 3)
    assert "nothing to do: 3 already in the cache" in ran.err


def test_a_dry_run_changes_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (folder / "broken.png").symlink_to(tmp_path / "nowhere")
    command = ("compress", folder, "--out", cache, "--dry-run", "--json")
    plan = run(*command).records[0]
    size = sum(path.stat().st_size for path in folder.iterdir() if path.exists())
    assert (plan["new"], plan["bytes"], plan["cached"], plan["failed"]) == (10, size, 0, 1)
    assert not cache.exists()
    assert run("compress", folder, "--out", cache, "--limit", 4).code == 3
    before = cache_files(cache)
    plan = run(*command).records[0]
    assert (plan["new"], plan["cached"], cache_files(cache)) == (7, 3, before)
    whole = run("compress", folder, "--out", tmp_path / "whole")
    assert whole.code == 3
    stored = open_cache(tmp_path / "whole").index.size
    assert plan["cache_bytes"] == pytest.approx(stored * 0.7, rel=0.1)
    refused = run(*command, "--keep", "12")
    assert (refused.code, "made with keep 11%, not 12" in refused.err) == (1, True)


def test_a_log_has_all_messages(run: Run, folder: Path, tmp_path: Path) -> None:
    """With --quiet as well, and after those of an earlier run."""
    log = tmp_path / "log.txt"
    (folder / "bad.png").write_bytes(b"no image")
    ran = run("compress", folder, "--out", tmp_path / "cache", "--log", log, "--quiet")
    assert (ran.code, "visual tokens" in ran.err) == (3, False)
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}[+-]\d\d:\d\d ", line) for line in lines)
    for words in ("prunesid compress ", "error: ", "bad.png: not an image", "scene3.png: 63 of 576", "compressed 10"):
        assert any(words in line for line in lines), words
    assert run("answer", tmp_path / "cache", PROMPT, "--limit", 1, "--log", log).code == 0
    assert log.read_text().splitlines()[: len(lines)] == lines
    refused = run("compress", folder, "--out", tmp_path / "cache", "--log", tmp_path)
    assert (refused.code, "cannot write to" in refused.err) == (2, True)
