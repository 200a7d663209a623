"""The configuration file: its keys, its place among other settings, and what happens if it is broken."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from prunesid_cli.cli.config import config_path
from tests.conftest import Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = config_path()
    path.parent.mkdir(parents=True)
    return path


def test_models_use_changes_the_model_only(run: Run, config: Path, llava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "l\u00e4ma \U0001f999"
    shutil.copytree(llava, folder)
    config.write_text('keep = "64"\n"model" = "old/one"\nrevision = "v1"\n[other]\nmodel = "kept"\n')
    assert run("models", "use", folder).code == 0
    assert tomllib.loads(config.read_text(encoding="utf-8")) == {
        "model": str(folder),
        "keep": "64",
        "other": {"model": "kept"},
    }
    assert f"* {folder}" in run("models").out
    assert [path.name for path in config.parent.iterdir()] == [config.name]


def test_a_broken_file_is_named_and_help_still_works(run: Run, config: Path, pictures: list[Path]) -> None:
    config.write_text("keep = ")
    result = run("ask", pictures[0], "what?")
    assert (result.code, str(config) in result.err, "hint: " in result.err) == (2, True, True)
    assert run("ask", "--help").code == 0
    assert run("--version").code == 0


def test_an_input_may_have_the_name_of_a_command(
    run: Run, config: Path, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration applies to it, and a broken one is named."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures[0].parent, "models")
    config.write_text(f'keep = "40"\nmodel = "{llava}"\n')
    assert run("compress", "models", "--out", "c").code == 0
    assert {line.split("/")[0] for line in run("cache", "ls", "c").out.splitlines()} == {"40"}
    config.write_text("keep = ")
    broken = run("compress", "models", "--out", "d")
    assert (broken.code, str(config) in broken.err) == (2, True)


def test_empty_variables_of_folders_count_as_unset(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")
    assert run("--version").code == 0
    assert not {"HOME", "XDG_CONFIG_HOME"} & os.environ.keys()
    home = config_path().parts[:2]
    assert home not in (("/", ".config"), ("prunesid", "config.toml"))


def test_a_folder_that_cannot_be_made(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    ran = run("models", "use", "demo")
    assert (ran.code, "config.toml: Not a directory\nhint: " in ran.err) == (1, True), ran.err


def test_the_help_names_the_sources_of_options(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    for what in ("PRUNESID_KEEP", "~/.config/prunesid/config.toml", "$XDG_CONFIG_HOME"):
        assert what in text


def test_the_environment_precedes_the_file_and_the_file_the_default(
    run: Run, config: Path, llava: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(*args: str) -> int:
        return int(run("ask", "-m", llava, pictures[0], "what?", "--json", *args).records[0]["kept"])

    assert kept() == 63
    config.write_text('keep = "40"\n')
    assert kept() == 40
    monkeypatch.setenv("PRUNESID_KEEP", "30")
    assert kept() == 30
    assert kept("-k", "20") == 20


def test_evaluate_reads_the_model_but_not_the_budget(
    run: Run, config: Path, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    config.write_text(f'model = "{llava}"\nkeep = "40"\nmax_new_tokens = 3\n')
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"media": str(pictures[0]), "prompt": "what?"}) + "\n")
    result = run("evaluate", data, "--json")
    assert (result.code, "embedded" in result.err) == (0, False), result.err
    assert [record["keep"] for record in result.records] == ["all", "192", "128", "64", "32", "16"]


def test_unknown_keys_are_named(run: Run, config: Path, llava: Path, pictures: list[Path]) -> None:
    config.write_text('kep = 3\nmax-new-tokens = 3\nqwertz = 1\nkeep = "8"\nattn = "eager"\n[Keep]\nall = 1\n')
    result = run("ask", "-m", llava, pictures[0], "what?", "--json", "-q")
    assert (result.code, result.records[0]["kept"]) == (0, 8)
    assert result.err.splitlines() == [
        f"warning: kep in {config} is not an option: did you mean keep?",
        f"warning: max-new-tokens in {config} is not an option: did you mean max_new_tokens?",
        f"warning: qwertz in {config} is not an option",
        f"warning: [Keep] in {config} is not read: options stand above all tables",
    ]
    config.write_text("json = true\nstream = true\n")  # options of some commands only
    assert run("ask", "-m", llava, pictures[0], "what?", "-q").err == ""
