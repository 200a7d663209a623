"""What a user sees: answers, caches, messages, exit codes. Every command as it is typed, on a tiny LLaVA."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunesid_cli.tokencache import open_cache
from tests import hostile
from tests.caches import held, write_shard
from tests.conftest import Run

ASK = "what is shown?"
RAW = ("Value error", "Input should", "env var", "PRUNESID_")
"""What a parser says, and no user."""


def prunesid(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prunesid_cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.mark.parametrize("keep", ["64", "11%", "all", "3"])
def test_ask_is_compress_then_answer(run: Run, llava: Path, pictures: list[Path], tmp_path: Path, keep: str) -> None:
    some = pictures[:4]
    asked = [run("ask", "-m", llava, "-k", keep, path, ASK).out.strip() for path in some]
    assert run("compress", *some, "--out", tmp_path / "c", "-m", llava, "-k", keep).code == 0
    answered = run("answer", tmp_path / "c", ASK)
    assert answered.code == 0
    assert [record["answer"] for record in answered.records] == asked
    assert len(set(asked)) > 1, "the tiny model says the same of everything: nothing was compared"


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batch_size_changes_nothing(run: Run, llava: Path, pictures: list[Path], tmp_path: Path, size: int) -> None:
    for name, batch in (("one", 1), ("many", size)):
        assert run("compress", *pictures, "--out", tmp_path / name, "-m", llava, "--batch-size", batch).code == 0
    kept = [[item.kept for item in held(tmp_path / name).values()] for name in ("one", "many")]
    assert kept[0] == kept[1]
    one = run("answer", tmp_path / "one", ASK, "--batch-size", 1)
    many = run("answer", tmp_path / "many", ASK, "--batch-size", size)
    assert [r["answer"] for r in one.records] == [r["answer"] for r in many.records]


def test_same_command_same_bytes(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("compress", pictures[0].parent, "--out", tmp_path / name, "-m", llava)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir()) != []
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_answer_reads_neither_pictures_nor_tower(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """With the pictures gone and the tower's weights taken out of the checkpoint."""
    from safetensors.torch import load_file, save_file

    folder, model = tmp_path / "pictures", tmp_path / "model"
    shutil.copytree(pictures[0].parent, folder)
    shutil.copytree(llava, model)
    run("compress", folder, "--out", tmp_path / "c", "-m", model)
    expected = run("answer", tmp_path / "c", ASK)
    shutil.rmtree(folder)
    weights = load_file(model / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "vision_tower" not in k or "embeddings" in k or "norm" in k}
    kept = {k: v for k, v in kept.items() if ".layers." not in k or "language_model" in k}
    assert len(kept) < len(weights)
    save_file(kept, model / "model.safetensors", {"format": "pt"})
    cache = _with_revision_of(tmp_path / "c", model)
    assert [r["answer"] for r in run("answer", cache, ASK).records] == [r["answer"] for r in expected.records]


def _with_revision_of(cache: Path, model: Path) -> Path:
    """The same cache, said to be of the checkpoint as it is now."""
    from dataclasses import replace

    from prunesid_cli.models.loading.checkpoint import fingerprint
    from prunesid_cli.tokencache import Entry, read_tokens

    shard = next(open_cache(cache).items())[0]
    sets = read_tokens(shard, shard.items)
    entries = [Entry(provenance=i.provenance, tokens=t, phi=i.phi) for i, t in zip(shard.items, sets, strict=True)]
    other = cache.with_name("again")
    other.mkdir()
    run = replace(shard.run, revision=fingerprint(model))
    write_shard(other / shard.path.name, run, shard.tool, entries)
    return other


def test_several_pictures_in_one_prompt(run: Run, llava: Path, pictures: list[Path]) -> None:
    ran = run("ask", "-m", llava, *pictures[:3], "what differs?", "--json", "-k", "40")
    assert ran.code == 0
    (record,) = ran.records
    assert (record["kept"], record["tokens"], len(record["sources"])) == (120, 3 * 576, 3)


def test_a_record_says_how_it_came_about(run: Run, llava: Path, pictures: list[Path]) -> None:
    """And whether its answer was cut."""
    ask = ("ask", "-m", llava, pictures[0], ASK, "--json", "--method", "grid", "-k", 40, "-u")
    ran = run(*ask, "--max-new-tokens", 3)
    (record,) = ran.records
    assert (record["method"], record["keep"], record["new_tokens"], record["cut"]) == ("grid", "40", 3, True)
    for stage in ("preprocess", "encode", "select", "generate"):
        assert float(re.findall(rf"{stage} (\d+) ms", ran.err)[0]) == pytest.approx(record[f"{stage}_ms"], abs=0.6)
    whole = run("ask", pictures[0], ASK, "--json").records[0]
    assert (whole["method"], whole["keep"], whole["cut"]) == ("prunesid", "11%", False)
    length = whole["new_tokens"]
    for most in (length, length + 1):  # the end, too, is a token
        same = run("ask", pictures[0], ASK, "--json", "--max-new-tokens", most).records[0]
        assert (same["answer"], same["cut"]) == (whole["answer"], most == length)


def test_stdin_is_a_picture_a_prompt_or_a_list(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    expected = run("ask", "-m", llava, pictures[0], ASK).out
    assert run("ask", "-m", llava, "-", ASK, stdin=pictures[0].read_bytes()).out == expected
    assert run("ask", "-m", llava, pictures[0], "-", stdin=ASK.encode() + b"\n").out == expected
    lines = "".join(f"{path}\n" for path in pictures[:3]).encode()
    assert run("compress", "-", "--out", tmp_path / "c", "-m", llava, stdin=lines).code == 0
    nul = "\0".join(map(str, pictures[:3])).encode()
    again = run("compress", "-", "-0", "--out", tmp_path / "c", "-m", llava, stdin=nul)
    assert "3 already in the cache" in again.err


def test_prompts_from_a_file(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    run("compress", *pictures[:3], "--out", tmp_path / "c", "-m", llava)
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": ASK}, {"prompt": "is there a star?", "source": str(pictures[1])}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    ran = run("answer", tmp_path / "c", "--prompts", prompts)
    assert [(r["id"], r["source"], r["prompt"]) for r in ran.records] == [
        (0, str(pictures[0]), ASK),
        (1, str(pictures[1]), ASK),
        (2, str(pictures[1]), "is there a star?"),
        (3, str(pictures[2]), ASK),
    ]
    assert {"answer", "tokens", "kept", "ms"} <= set(ran.records[0])
    prompts.write_text("not json")
    assert run("answer", tmp_path / "c", "--prompts", prompts).code == 2
    prompts.write_text('{"prompt": "x", "source": "nowhere"}')
    assert run("answer", tmp_path / "c", "--prompts", prompts).code == 2


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["-k", "0"], 2, "more than nothing"),
        (["-k", "120%"], 2, "more than 100%"),
        (["-k", "lots"], 2, "cannot read 'lots'"),
        (["--method", "best"], 2, "no selection method"),
        (["--method", "PrunSID"], 2, "hint: did you mean prunesid? one of: prunesid, "),
        (["--device", "tpu9"], 2, "no such device"),
        (["-m", "nobody/nothing"], 1, "nobody/nothing"),
        (["-m", "./nowhere"], 1, "no such model folder"),
        (["-m", "qwn2-vl-7B"], 1, "hint: did you mean qwen2-vl-7b? see: prunesid models"),
        (["-m", "nosuch"], 1, "prunesid models"),
        (["-m", "a b c"], 1, "neither a folder nor a repo id"),
    ],
)
def test_bad_options(run: Run, llava: Path, pictures: list[Path], args: list[str], code: int, words: str) -> None:
    base = [] if "-m" in args else ["-m", llava]
    ran = run("ask", *base, *args, pictures[0], ASK)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert "hint: " in ran.err
    assert "Traceback" not in ran.err


def test_contradictions_are_refused_where_both_were_typed(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, cache = ("--out", tmp_path / "c", "-m", llava), tmp_path / "cache"
    for args, words in (
        (("compress", pictures[0], *out, "--fixed", "--stream"), "--fixed and --stream contradict"),
        (("compress", pictures[0], *out, "--calibrate", "--stream"), "--stream and --calibrate contradict"),
        (("ask", "-m", llava, "--fixed", "--calibration", cache, pictures[0], ASK), "--fixed and --calibration"),
        (("compress", pictures[0], *out, "-0"), "-0 is about a list on stdin"),
        (("answer", cache, ASK, "--prompts", "x.jsonl"), "not both"),
        (("ask", "-m", llava, "-q", "-v", pictures[0], ASK), "--quiet and --verbose contradict"),
        (("compress", pictures[0], *out, "-vq"), "--quiet and --verbose contradict"),
    ):
        ran = run(*args)
        assert (ran.code, ran.out, words in ran.err) == (2, "", True), ran.err
        assert len(ran.err.splitlines()) == 2
        assert "hint: " in ran.err
    assert not (tmp_path / "c").exists()
    monkeypatch.setenv("PRUNESID_DYNAMIC", "0")  # what is typed counts more
    assert run("compress", pictures[0], *out, "--stream").code == 0
    assert open_cache(tmp_path / "c").run.dynamic
    monkeypatch.delenv("PRUNESID_DYNAMIC")
    configure(tmp_path, "stream = true")
    assert run("compress", pictures[0], "--out", tmp_path / "d", "-m", llava, "--fixed").code == 0
    assert open_cache(tmp_path / "d").run.even


def configure(folder: Path, text: str) -> None:
    path = folder / "config" / "prunesid" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_folder_has_no_revisions(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("compress", pictures[0], "--out", tmp_path / "c", "-m", llava)
    for args, what in (
        (("ask", "-m", llava, "--revision", "v1", pictures[0], ASK), f"{llava} is a folder, which"),
        (("ask", "--revision", "v1", pictures[0], ASK), "the embedded model"),
        (("compress", pictures[0], "--out", tmp_path / "d", "-m", "demo", "--revision", "v1"), "the embedded model"),
        (("answer", tmp_path / "c", ASK, "--revision", "v1"), f"{llava} is a folder, which"),
    ):
        ran = run(*args)
        assert (ran.code, ran.out, f"error: {what} has no revisions" in ran.err) == (2, "", True), ran.err
        assert "hint: leave out --revision" in ran.err
    configure(tmp_path, 'model = "nobody/nothing"\nrevision = "v1"')  # of that model
    assert run("ask", "-m", llava, pictures[0], ASK).code == 0
    monkeypatch.setenv("PRUNESID_REVISION", "v1")
    assert run("ask", "-m", llava, pictures[0], ASK).code == 0
    assert run("answer", tmp_path / "c", ASK).code == 0
    monkeypatch.setenv("PRUNESID_MODEL", str(llava))
    assert "has no revisions" in run("ask", pictures[0], ASK).err


def test_an_error_names_where_a_value_came_from(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("ask", "-m", llava, pictures[0], ASK)
    configure(tmp_path, 'method = "best"')
    assert f"error: method in {tmp_path}/config/prunesid/config.toml: no selection method" in run(*ask).err
    monkeypatch.setenv("PRUNESID_KEEP", "zzz")
    ran = run(*ask, "--method", "grid")
    assert (ran.code, "error: PRUNESID_KEEP: cannot read 'zzz'" in ran.err) == (2, True)
    assert "error: cannot read 'yyy'" in run(*ask, "--method", "grid", "-k", "yyy").err


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--dtype", "fp8"], "--dtype: 'fp8' is not one of 'auto', 'bf16', 'fp16', 'fp32'"),
        (["--frames", "0"], "--frames: "),
        (["--frames", "x"], "--frames: "),
        (["--seed", "-1"], "--seed: "),
        (["-k"], "Option '-k' requires an argument."),
    ],
)
def test_what_the_parser_refuses_is_said_as_all_else(
    run: Run, pictures: list[Path], args: list[str], problem: str
) -> None:
    ran = run("ask", pictures[0], ASK, *args)
    said, hint = ran.err.splitlines()
    assert (ran.code, ran.out, said.startswith(f"error: {problem}")) == (2, "", True), ran.err
    assert not [raw for raw in RAW if raw in ran.err]
    assert hint == "hint: see: prunesid ask --help"


def test_what_the_parser_refuses_is_named_where_it_stands(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("ask", pictures[0], ASK)
    configure(tmp_path, 'attn = "best"\n')
    assert f"error: attn in {tmp_path}/config/prunesid/config.toml: 'best' is not one of" in run(*ask).err
    monkeypatch.setenv("PRUNESID_ATTN", "worst")
    assert "error: PRUNESID_ATTN: 'worst' is not one of" in run(*ask).err
    assert "error: --attn: 'x' is not one of" in run(*ask, "--attn", "x").err


def test_what_was_meant_is_typed_out(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b c.png", "-dash.png", "--dash.png"):
        shutil.copy(pictures[0], name)
    for hint, *args in (
        ("the prompt comes last: prunesid ask a.png 'what is shown?'", "ask", ASK, "a.png"),
        ("the prompt comes last: prunesid ask 'b c.png' a.png 'what is shown?'", "ask", ASK, "b c.png", "a.png"),
        ("a file whose name begins with -: ./-dash.png", "compress", "-dash.png", "--out", "c"),
        ("a file whose name begins with -: ./--dash.png", "compress", "--dash.png", "--out", "c"),
        ("see: prunesid compress --help", "compress", "-dish.png", "--out", "c"),
        ('put several prompts into a file, one {"prompt": ...} a line: --prompts', "answer", "c", ASK, ASK),
        ('ask something: "what is shown?"', "ask", "a.png", " "),
        ('ask something: "what is shown?"', "ask", "a.png", "<image>"),
    ):
        ran = run(*args)
        assert (ran.code, ran.out, f"hint: {hint}" in ran.err) == (2, "", True), ran.err
    assert "gone.png: no such file" in run("ask", "gone.png", ASK).err


def test_nothing_on_stdin(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    for args, code in ((("-", ASK), 1), ((pictures[0], "-"), 2)):
        ran = run("ask", "-m", llava, *args)
        assert (ran.code, "error: nothing came on stdin\nhint: pipe a p" in ran.err) == (code, True), ran.err
    done = in_a_shell(f"prunesid compress - --out {tmp_path}/c -m {llava} <&-")
    assert (done.returncode, "- reads stdin, which is closed" in done.stderr) == (2, True)


def test_a_video_on_stdin_is_told_what_can_be_done(run: Run, llava: Path) -> None:
    ran = run("ask", "-m", llava, "-", ASK, stdin=hostile.ftyp(b"isom"))
    assert (ran.code, "hint: name its file: clips are not read from stdin" in ran.err) == (1, True)


def test_the_hub_tells_nothing_of_its_retries(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    import logging

    run("ask", "-m", "nobody/nothing", pictures[0], ASK, "-q")
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


def test_a_hub_that_is_not_reached_is_told_at_once(pictures: list[Path], tmp_path: Path) -> None:
    """And before it is asked; no download is tried, whose retries take half a minute."""
    others = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PRUNESID_MODEL")}
    nowhere = others | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    ask = ("ask", pictures[0], ASK, "-m", "nobody/nothing")
    ran = prunesid(*ask, env=nowhere)
    note, error, hint = ran.stderr.splitlines()
    assert (ran.returncode, note) == (1, "looking for nobody/nothing on the Hugging Face hub")
    assert error == "error: nobody/nothing is not on this machine and the hub cannot be reached"
    assert prunesid(*ask, "-q", env=nowhere).stderr.splitlines() == [error, hint]


def test_more_than_all_keeps_all_and_says_so(run: Run, llava: Path, pictures: list[Path]) -> None:
    ran = run("ask", "-m", llava, "-k", "900", pictures[0], ASK)
    assert "--keep 900 of 576 visual tokens: all are kept" in ran.err
    assert ran.out == run("ask", "-m", llava, "-k", "all", pictures[0], ASK).out


def test_debug_shows_the_traceback(run: Run, llava: Path) -> None:
    assert "Traceback" in run("ask", "-m", llava, "missing.jpg", ASK, "--debug").err
    assert "Traceback" not in run("ask", "-m", llava, "missing.jpg", ASK).err


def test_other_kinds_of_models_are_refused(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    def variant(name: str, change: dict) -> Path:
        folder = tmp_path / name
        shutil.copytree(llava, folder)
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"] |= change.pop("vision_config", {})
        (folder / "config.json").write_text(json.dumps(config | change))
        return folder

    bert = variant("bert", {"model_type": "bert"})
    dino = variant("dino", {"vision_config": {"model_type": "dinov2"}})
    deep = variant("deep", {"vision_feature_layer": [-2, -9]})
    for folder, words in ((bert, "type 'bert'"), (dino, "'dinov2'"), (deep, "layers [-2, -9] of 4")):
        (folder / "model.safetensors").unlink()
        ran = run("ask", "-m", folder, pictures[0], ASK)
        assert (ran.code, words in ran.err, "hint: " in ran.err) == (1, True, True), ran.err


def test_faulty_pictures_cost_themselves_alone(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(pictures[0], folder / "good.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"hello " * 40)
    jpeg = hostile.encoded(hostile.noise(), "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "readme.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"")
    ran = run("compress", folder, tmp_path / "missing.jpg", "--out", tmp_path / "c", "-m", llava)
    assert ran.code == 3
    assert re.search(
        r"compressed 1 image .* 1 hidden file passed over .* 1 other file passed over .* 4 failed", ran.err
    )
    failed = run("cache", "ls", tmp_path / "c", "--failed", "--json").records
    assert {Path(record["source"]).name for record in failed} == {"empty.jpg", "text.jpg", "cut.jpg", "missing.jpg"}
    assert all(record["error"] and record["hint"] for record in failed)
    listed = run("cache", "ls", tmp_path / "c", "--failed").out
    assert f"{folder}/empty.jpg\tempty file\n" in listed
    shutil.copy(pictures[1], folder / "cut.jpg")
    again = run("compress", folder, "--out", tmp_path / "c", "-m", llava, "-v")
    assert (again.code, "1 already in the cache" in again.err) == (3, True)
    told = [
        f"llava model {llava}, revision ",
        "device cpu, dtype torch.float32, attention sdpa",
        f"{folder}/good.png: already in the cache",
        f"{folder}/cut.jpg: 63 of 576 visual tokens",
        f"{folder}/readme.txt: other file, passed over",
        f"{folder}/.hidden.png: hidden file, passed over",
    ]
    assert all(words in again.err and words not in ran.err for words in told), again.err
    assert len(run("cache", "ls", tmp_path / "c").out.splitlines()) == 2
    still = run("cache", "ls", tmp_path / "c", "--failed", "--json").records
    assert {Path(record["source"]).name for record in still} == {"empty.jpg", "text.jpg", "missing.jpg"}


def test_odd_pictures_are_read_and_said(run: Run, llava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    odd = {
        "animated.gif": hostile.animated("GIF"),
        "cmyk.jpg": hostile.encoded(hostile.landmark().convert("CMYK"), "JPEG"),
        "grey16.png": hostile.grey16([0, 32768, 65535]),
        "palette.png": hostile.encoded(hostile.landmark().quantize(16), "PNG", transparency=3),
        "rotated.jpg": hostile.turned(6, "JPEG"),
    }
    for name, data in odd.items():
        (folder / name).write_bytes(data)
    (folder / "bomb.png").write_bytes(hostile.bomb(20_000, 20_000))
    ran = run("compress", folder, "--out", tmp_path / "c", "-m", llava)
    assert (ran.code, "compressed 5 images" in ran.err) == (3, True)
    for words in ("animated, 3 frames: the first is used", "16-bit grey", "CMYK", "limit of 100 megapixels"):
        assert words in ran.err
    (item,) = [item for source, item in held(tmp_path / "c").items() if source.endswith("rotated.jpg")]
    assert item.size == hostile.landmark().size
    assert held(tmp_path / "c")[str(folder / "animated.gif")].notes != ()


def test_a_changed_picture_is_done_again(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    shutil.copy(pictures[0], path)
    run("compress", path, "--out", tmp_path / "c", "-m", llava)
    shutil.copy(pictures[1], path)
    run("compress", path, "--out", tmp_path / "c", "-m", llava)
    assert run("answer", tmp_path / "c", ASK).records[0]["answer"] == run("ask", "-m", llava, path, ASK).out.strip()
    assert len(run("answer", tmp_path / "c", ASK).records) == 1


def test_a_lost_shard_is_said_by_all_and_mended_by_the_same_command(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "c"
    command = ("compress", *pictures[:4], "--out", out, "-m", llava, "--shard-items", 2)
    run(*command)
    whole = run("answer", out, ASK)
    (out / "prunesid-00001.safetensors").unlink()
    ran = run("answer", out, ASK)
    assert (ran.code, len(ran.records)) == (3, 2)
    assert "prunesid-00001.safetensors is missing, and with it 2 items\nhint: run the same compress" in ran.err
    other = run("compress", pictures[5], "--out", out, "-m", llava)
    assert "goes on without 1 of the 2 items that it lacked: they were not among these images" in other.err
    (out / "prunesid-00002.safetensors").unlink()
    again = run(*command)
    assert (again.code, "prunesid-00002.safetensors is missing, and with it 1 item: done again" in again.err) == (
        0,
        True,
    )
    assert "goes on without" not in again.err
    answered = run("answer", out, ASK)
    assert answered.code == 0
    assert [r["answer"] for r in answered.records] == [r["answer"] for r in whole.records]
    for path in out.glob("prunesid-0*.safetensors"):
        path.unlink()
    ran = run("answer", out, ASK)
    assert (ran.code, "are missing, and with them 4 items" in ran.err) == (1, True)


def test_nothing_found(run: Run, llava: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    ran = run("compress", tmp_path / "in", "--out", tmp_path / "c", "-m", llava)
    assert (ran.code, ran.err) == (0, "warning: nothing to do: no images or clips found\n")
    assert run("cache", "ls", tmp_path / "c").code == 0


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
    ran = run("answer", tmp_path / "c", ASK, "-m", changed)
    assert (ran.code, ran.out) == (1, "")
    assert "the cache holds tokens of" in ran.err
    moved = tmp_path / "moved"
    shutil.copytree(llava, moved)
    assert run("answer", tmp_path / "c", ASK, "-m", moved).code == 0


def test_features_that_are_not_finite_name_the_picture(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(llava, model)
    weights = load_file(model / "model.safetensors")
    name = next(k for k in weights if "vision_tower" in k and "layers.0.mlp.fc1.weight" in k)
    weights[name] *= 1e30
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    ran = run("ask", "-m", model, pictures[0], ASK)
    assert (ran.code, f"{pictures[0]}: the vision tower gives NaN" in ran.err) == (1, True)
    ran = run("compress", *pictures[:2], "--out", tmp_path / "c", "-m", model)
    assert (ran.code, ran.err.count("the vision tower gives NaN")) == (3, 2)


def test_usage_goes_to_stderr(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    ran = run("ask", "-m", llava, pictures[0], ASK, "--usage")
    assert "visual tokens 576 -> 63 (10.9%)" in ran.err
    (line,) = [line for line in ran.err.splitlines() if line.startswith("visual tokens")]
    assert all(f"   {stage} " in line for stage in ("prompt", "encode", "select", "generate"))
    assert len(ran.out.splitlines()) == 1
    ran = run("compress", pictures[0], "-m", llava, "--out", tmp_path, "-u", "-q")
    assert all(f"{stage} " in ran.err for stage in ("encode", "select"))


def test_models_use_sets_the_default(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("models").out.startswith("* demo")
    monkeypatch.chdir(llava.parent)
    assert run("models", "use", f"./{llava.name}").code == 0
    monkeypatch.chdir(tmp_path)
    assert run("ask", pictures[0], ASK).out == run("ask", "-m", llava, pictures[0], ASK).out
    assert run("models", "use", "./nowhere").code == 1


def test_a_model_that_was_chosen_is_not_remarked_on(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded one, too."""
    ask = ("ask", pictures[0], ASK)
    assert "using the embedded demo model" in run(*ask).err
    assert run(*ask, "-m", "demo").err == ""
    run("compress", pictures[0], "--out", tmp_path / "c", "-q")
    assert run("answer", tmp_path / "c", ASK).err == ""
    monkeypatch.setenv("PRUNESID_MODEL", "demo")
    assert run(*ask).err == ""
    monkeypatch.delenv("PRUNESID_MODEL")
    assert run("models", "use", "demo").code == 0
    assert run(*ask).err == run("show", pictures[0]).err == ""


def test_tags_place_images_in_a_prompt(run: Run, llava: Path, pictures: list[Path]) -> None:
    """<image>, once for each; for a model that puts images first anyway, as LLaVA-1.5 does, they change nothing."""
    plain = run("ask", "-m", llava, *pictures[:2], "and what?", "--json").records[0]
    placed = run("ask", "-m", llava, *pictures[:2], "<image>and <image>what?", "--json").records[0]
    assert (placed["answer"], placed["prompt_tokens"]) == (plain["answer"], plain["prompt_tokens"])
    wrong = run("ask", "-m", llava, *pictures[:2], "what is <image> about?")
    assert (wrong.code, "there are 2" in wrong.err, "<image>" in wrong.err) == (2, True, True)
    nothing = run("ask", "-m", llava, pictures[0], " <image> ")
    assert (nothing.code, "asks nothing" in nothing.err) == (2, True)


def test_sampling_is_repeatable_and_leaves_the_generator_alone(run: Run, llava: Path, pictures: list[Path]) -> None:
    import torch

    before = torch.random.get_rng_state()
    answers = {run("ask", "-m", llava, pictures[0], ASK, "--temperature", "3", "--seed", s).out for s in (1, 1, 2, 3)}
    assert 1 < len(answers) <= 3
    assert torch.equal(before, torch.random.get_rng_state())


def test_help_and_listing_start_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from prunesid_cli import cli; sys.argv = ['prunesid', *sys.argv[1:]]; cli._run();"
        "print([m for m in ('torch', 'transformers', 'PIL', 'scipy', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    for args in (["--help"], ["ask", "--help"], ["bench", "--help"], ["models"], ["cache", "ls", str(tmp_path)]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
        assert done.stderr.splitlines()[-1] == "[]", (args, done.stderr)


def in_a_shell(command: str) -> subprocess.CompletedProcess[str]:
    line = f'set -o pipefail; prunesid() {{ {sys.executable} -m prunesid_cli "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)


def test_a_closed_pipe_ends_quietly(llava: Path, pictures: list[Path], tmp_path: Path, run: Run) -> None:
    run("compress", *pictures, "--out", tmp_path / "c", "-m", llava)
    for command in (f"cache ls {tmp_path / 'c'}", "--help", "ask --help", "cache"):
        done = in_a_shell(f"prunesid {command} | true")
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.slow
def test_closed_streams(llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    ask = f"prunesid ask -m {llava} {pictures[0]} 'what is shown?'"
    compress = f"prunesid compress -m {llava} {pictures[0]} --out {tmp_path}/c"
    told = "error: stdout is closed, there is nowhere to write a result\nhint: leave out >&-\n"
    for command in (ask, f"{compress} --json", "prunesid models", "prunesid --version"):
        done = in_a_shell(f"{command} >&-")
        assert (done.returncode, done.stderr) == (1, told), command
    done = in_a_shell(f"{compress} -q >&-; prunesid cache verify {tmp_path}/c")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 item good, 0 faults\n", "")
    done = in_a_shell(f"{ask} 2>&-")
    assert (done.returncode, done.stdout) == (0, in_a_shell(ask).stdout)
    assert in_a_shell(f"{ask} -k 0 2>&-").returncode == 2


def on_a_terminal(*args: object) -> str:
    """What the command writes to a terminal on stdout, line ends as a file has them."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "prunesid_cli", *map(str, args)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL):
        os.close(theirs)
        parts = []
        while part := _read(ours):
            parts.append(part)
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 4096)
    except OSError:  # how a terminal says that nobody writes any more
        return b""


@pytest.mark.slow
def test_a_terminal_gets_text_for_people(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    expected = run("ask", "-m", llava, pictures[0], ASK).out
    assert on_a_terminal("ask", "-m", llava, pictures[0], ASK) == expected
    run("compress", *pictures[:2], "--out", tmp_path / "c", "-m", llava)
    records = run("answer", tmp_path / "c", ASK).records
    people = "".join(f"{record['source']}: {record['answer']}\n" for record in records)
    assert on_a_terminal("answer", tmp_path / "c", ASK) == people


@pytest.mark.slow
def test_start_is_quick() -> None:
    """A ratio, not seconds: all that we add to the help of a bare typer app costs less than that app."""
    bare = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"

    def seconds(*args: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *args], capture_output=True, timeout=60, check=True)
        return time.perf_counter() - began

    turns = [(seconds("-m", "prunesid_cli", "--help"), seconds("-c", bare)) for _ in range(8)]
    ours, others = map(min, zip(*turns, strict=True))
    assert ours < 2 * others
