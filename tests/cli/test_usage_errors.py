"""Wrong options and arguments: exit code 2, one line that says what is wrong, one hint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import LlavaNextImageProcessorPil

from prunesid_cli.tokencache import open_cache
from tests.conftest import PROMPT, Run
from tests.models.tiny import write_checkpoint

PARSER_WORDS = ("Value error", "Input should", "env var", "PRUNESID_")
"""Words of the option parser that mean nothing to a user."""


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
    result = run("ask", *base, *args, pictures[0], PROMPT)
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert "hint: " in result.err
    assert "Traceback" not in result.err


def test_options_that_contradict_are_refused_if_both_are_typed(
    run: Run,
    llava: Path,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_config: Callable[[str], Path],
) -> None:
    out, cache = ("--out", tmp_path / "c", "-m", llava), tmp_path / "cache"
    for args, words in (
        (("compress", pictures[0], *out, "--fixed", "--stream"), "--fixed and --stream contradict"),
        (("compress", pictures[0], *out, "--calibrate", "--stream"), "--stream and --calibrate contradict"),
        (("ask", "-m", llava, "--fixed", "--calibration", cache, pictures[0], PROMPT), "--fixed and --calibration"),
        (("compress", pictures[0], *out, "-0"), "-0 is about a list on stdin"),
        (("answer", cache, PROMPT, "--prompts", "x.jsonl"), "not both"),
        (("ask", "-m", llava, "-q", "-v", pictures[0], PROMPT), "--quiet and --verbose contradict"),
        (("compress", pictures[0], *out, "-vq"), "--quiet and --verbose contradict"),
    ):
        result = run(*args)
        assert (result.code, result.out, words in result.err) == (2, "", True), result.err
        assert len(result.err.splitlines()) == 2
        assert "hint: " in result.err
    assert not (tmp_path / "c").exists()
    monkeypatch.setenv("PRUNESID_DYNAMIC", "0")  # options take precedence over the environment
    assert run("compress", pictures[0], *out, "--stream").code == 0
    assert open_cache(tmp_path / "c").run.dynamic
    monkeypatch.delenv("PRUNESID_DYNAMIC")
    write_config("stream = true")
    assert run("compress", pictures[0], "--out", tmp_path / "d", "-m", llava, "--fixed").code == 0
    assert open_cache(tmp_path / "d").run.even


def test_an_error_names_the_source_of_a_value(
    run: Run,
    llava: Path,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_config: Callable[[str], Path],
) -> None:
    ask = ("ask", "-m", llava, pictures[0], PROMPT)
    write_config('method = "best"')
    assert f"error: method in {tmp_path}/config/prunesid/config.toml: no selection method" in run(*ask).err
    monkeypatch.setenv("PRUNESID_KEEP", "zzz")
    result = run(*ask, "--method", "grid")
    assert (result.code, "error: PRUNESID_KEEP: cannot read 'zzz'" in result.err) == (2, True)
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
def test_parser_errors_look_like_all_other_errors(
    run: Run, pictures: list[Path], args: list[str], problem: str
) -> None:
    result = run("ask", pictures[0], PROMPT, *args)
    error, hint = result.err.splitlines()
    assert (result.code, result.out, error.startswith(f"error: {problem}")) == (2, "", True), result.err
    assert not [word for word in PARSER_WORDS if word in result.err]
    assert hint == "hint: see: prunesid ask --help"


def test_parser_errors_name_the_source_of_a_value(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_config: Callable[[str], Path]
) -> None:
    ask = ("ask", pictures[0], PROMPT)
    write_config('attn = "best"\n')
    assert f"error: attn in {tmp_path}/config/prunesid/config.toml: 'best' is not one of" in run(*ask).err
    monkeypatch.setenv("PRUNESID_ATTN", "worst")
    assert "error: PRUNESID_ATTN: 'worst' is not one of" in run(*ask).err
    assert "error: --attn: 'x' is not one of" in run(*ask, "--attn", "x").err


def test_hints_show_what_to_type(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b c.png", "-dash.png", "--dash.png"):
        shutil.copy(pictures[0], name)
    for hint, *args in (
        ("the prompt comes last: prunesid ask a.png 'what is shown?'", "ask", PROMPT, "a.png"),
        ("the prompt comes last: prunesid ask 'b c.png' a.png 'what is shown?'", "ask", PROMPT, "b c.png", "a.png"),
        ("a file whose name begins with -: ./-dash.png", "compress", "-dash.png", "--out", "c"),
        ("a file whose name begins with -: ./--dash.png", "compress", "--dash.png", "--out", "c"),
        ("see: prunesid compress --help", "compress", "-dish.png", "--out", "c"),
        ('put several prompts into a file, one {"prompt": ...} a line: --prompts', "answer", "c", PROMPT, PROMPT),
        ('ask something: "what is shown?"', "ask", "a.png", " "),
        ('ask something: "what is shown?"', "ask", "a.png", "<image>"),
    ):
        result = run(*args)
        assert (result.code, result.out, f"hint: {hint}" in result.err) == (2, "", True), result.err
    assert "gone.png: no such file" in run("ask", "gone.png", PROMPT).err


def test_wrong_usage_prints_an_error_and_a_hint(run: Run) -> None:
    for args in (("ask", "--nonsense"), ("compress", "x"), ("nonsense",), ("answer", "c", "p", "--seed", str(2**64))):
        result = run(*args)
        assert (result.code, result.out) == (2, ""), args
        assert result.err.startswith("error: ")
        assert "--help" in result.err
    assert "Usage" in run().err + run().out


def test_all_commands_have_debug(run: Run, tmp_path: Path) -> None:
    for args in (("cache", "ls", tmp_path), ("cache", "info", tmp_path), ("cache", "verify", tmp_path)):
        assert "Traceback" in run(*args, "--debug").err
        assert "Traceback" not in run(*args).err
    assert run("models", "--debug").code == 0


def test_debug_prints_the_traceback(run: Run, llava: Path) -> None:
    assert "Traceback" in run("ask", "-m", llava, "missing.jpg", PROMPT, "--debug").err
    assert "Traceback" not in run("ask", "-m", llava, "missing.jpg", PROMPT).err


def test_hints_repeat_the_command_with_its_model(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint("llava_next", tmp_path / "a model")
    out, options, odd = tmp_path / "c", f"-m '{model}'", tmp_path / "odd.png"
    Image.new("RGB", (37, 11)).save(odd)
    preprocess = LlavaNextImageProcessorPil.preprocess

    def fail_on_odd(self: LlavaNextImageProcessorPil, images: Any, *args: Any, **options: Any) -> Any:
        if images[0].width > 3 * images[0].height:
            raise ValueError("on purpose")
        return preprocess(self, images, *args, **options)

    monkeypatch.setattr(LlavaNextImageProcessorPil, "preprocess", fail_on_odd)
    result = run("compress", odd, pictures[0], "--out", out, "-m", model)
    hint = f"hint: see more with: prunesid compress {odd} {pictures[0]} --out {out} {options} --debug\n"
    assert (result.code, hint in result.err) == (3, True), result.err
    assert "on purpose" in run("compress", odd, "--out", out, "-m", model, "--debug").err
    assert run("cache", "ls", out, "--failed").code == 0
    result = run("ask", "what?", pictures[0], "-m", model, "-k", "64")
    assert f"hint: the prompt comes last: prunesid ask {pictures[0]} {options} -k 64 'what?'\n" in result.err
    result = run("ask", pictures[0], PROMPT, "--dynamic", "-m", llava)
    assert f"prunesid compress IMAGES --calibrate --out CACHE -m {llava}\n" in result.err, result.err
    result = run("ask", pictures[0], PROMPT, "--calibration", tmp_path / "no cache", "-m", llava)
    assert f"prunesid compress IMAGES --out '{tmp_path}/no cache' -m {llava}\n" in result.err, result.err
    result = run("cache", "ls", tmp_path / "no cache")
    assert result.err.endswith(f"prunesid compress IMAGES --out '{tmp_path}/no cache'\n"), result.err


def test_a_user_may_have_no_home(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 123_456)  # in no list of users
    monkeypatch.chdir(tmp_path)
    for args, code, words in (
        (("models", "use", "demo"), 2, "hint: set HOME, or XDG_CONFIG_HOME"),
        (("ask", "a.png", PROMPT, "-m", "~/model"), 1, "a.png: no such file"),
        (("models", "use", "~/model"), 1, "no such model folder: ~/model"),
        (("models",), 0, "* is the default"),
    ):
        result = run(*args)
        assert (result.code, words in result.err, list(tmp_path.iterdir())) == (code, True, []), result.err


def test_an_unexpected_exception_is_reported_as_a_bug(
    run: Run, monkeypatch: pytest.MonkeyPatch, write_config: Callable[[str], Path]
) -> None:
    def fail(text: str) -> None:
        raise ZeroDivisionError("on purpose")

    write_config("")
    monkeypatch.setattr("prunesid_cli.cli.config.tomllib.loads", fail)
    result = run("models")
    assert (result.code, "this is a bug" in result.err, "Traceback" in result.err) == (1, True, False)
    assert "on purpose" in run("models", "--debug").err
    assert "in fail" in run("models", "--debug").err
