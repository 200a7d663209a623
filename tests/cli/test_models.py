"""The choice of a model: the models command, the embedded model, revisions, the hub, unsupported checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from prunesid_cli.models.loading.checkpoint import ALIASES
from prunesid_cli.pipeline.model_info import count_parameters
from prunesid_cli.tokencache import open_cache, read_tokens
from tests.cli.conftest import SHORT
from tests.cli.helpers import cache_files
from tests.cli.processes import prunesid
from tests.conftest import PROMPT, Run
from tests.models.harness import Model
from tests.models.tiny import tiny_model, write_checkpoint


def test_models_use_sets_the_default(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("models").out.startswith("* demo")
    monkeypatch.chdir(llava.parent)
    assert run("models", "use", f"./{llava.name}").code == 0
    monkeypatch.chdir(tmp_path)
    assert run("ask", pictures[0], PROMPT).out == run("ask", "-m", llava, pictures[0], PROMPT).out
    assert run("models", "use", "./nowhere").code == 1


def test_models_are_listed_with_what_is_downloaded(run: Run) -> None:
    records = run("models", "ls", "--json").records
    assert [record["alias"] for record in records] == ["demo", *ALIASES]
    demo, *others = records
    assert demo["downloaded"]
    assert demo["disk_bytes"] > demo["vision_bytes"] > 0
    assert not any(record["downloaded"] for record in others)
    assert run("models", "ls").out == run("models").out


def test_a_downloaded_repo_is_listed_with_its_size(
    run: Run, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / f"models--{ALIASES['llava-1.5-7b'].replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("1" * 40)
    shutil.copytree(llava, repo / "snapshots" / ("1" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    listed = {record["alias"]: record for record in run("models", "ls", "--json").records}
    assert listed["llava-1.5-7b"]["downloaded"]
    assert listed["llava-1.5-7b"]["disk_bytes"] == sum(path.stat().st_size for path in llava.rglob("*"))
    assert not listed["llava-1.5-13b"]["downloaded"]


@pytest.mark.parametrize(
    "variant",
    ["llava", "qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("glm4v", "mgm", "internvl"))],
)
def test_what_is_told_of_a_model_is_what_compress_does(run: Run, tmp_path: Path, variant: str) -> None:
    folder = write_checkpoint(variant, tmp_path / "model")
    described = run("models", "info", folder, "--json").records[0]
    Image.effect_noise((1280, 960), 60).convert("RGB").save(tmp_path / "picture.png")
    assert run("compress", tmp_path / "picture.png", "-m", folder, "--out", tmp_path / "cache").code == 0
    item = next(iter(open_cache(tmp_path / "cache").items()))
    (tokens,) = read_tokens(item[0], [item[1]])
    assert described["image_tokens"] == tokens.layout.num_visual
    assert described["token_width"] == tokens.tokens.shape[1]
    assert described["kept_tokens"] == tokens.kept
    model = Model(folder, tiny_model(variant))
    halves = {"vision": model.vision, "language": model.language}
    for name, half in halves.items():
        assert described[f"{name}_parameters"] == count_parameters(half)
    text = run("models", "info", folder)
    assert f"{described['image_tokens']:,} visual tokens" in text.out


def test_the_note_about_the_embedded_model_ends_when_one_is_chosen(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the chosen model is the embedded one."""
    ask = ("ask", pictures[0], PROMPT)
    assert "using the embedded demo model" in run(*ask).err
    assert run(*ask, "-m", "demo").err == ""
    run("compress", pictures[0], "--out", tmp_path / "c", "-q")
    assert run("answer", tmp_path / "c", PROMPT).err == ""
    monkeypatch.setenv("PRUNESID_MODEL", "demo")
    assert run(*ask).err == ""
    monkeypatch.delenv("PRUNESID_MODEL")
    assert run("models", "use", "demo").code == 0
    assert run(*ask).err == run("show", pictures[0]).err == ""


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="Flash Attention is installed")
def test_without_flash_attention_the_hint_helps(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """This model does not run with SDPA either."""
    ask = ("ask", pictures[0], PROMPT, "-m", write_checkpoint("internvl-gpt_oss", tmp_path / "model"), *SHORT)
    ran = run(*ask, "--attn", "flash_attention_2")
    assert (ran.code, ran.err.endswith("\nhint: leave out --attn\n")) == (1, True), ran.err
    assert run(*ask).code == 0


def test_bytes_of_a_name_are_escaped(run: Run, pictures: list[Path]) -> None:
    for option in ("-m", "--keep", "--method"):
        ran = run("ask", pictures[0], PROMPT, option, "x\udcff")
        assert (ran.code > 0, r"'x\xff'" in ran.err) == (True, True), ran.err


def test_a_folder_has_no_revisions(
    run: Run,
    llava: Path,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_config: Callable[[str], Path],
) -> None:
    run("compress", pictures[0], "--out", tmp_path / "c", "-m", llava)
    for args, what in (
        (("ask", "-m", llava, "--revision", "v1", pictures[0], PROMPT), f"{llava} is a folder, which"),
        (("ask", "--revision", "v1", pictures[0], PROMPT), "the embedded model"),
        (("compress", pictures[0], "--out", tmp_path / "d", "-m", "demo", "--revision", "v1"), "the embedded model"),
        (("answer", tmp_path / "c", PROMPT, "--revision", "v1"), f"{llava} is a folder, which"),
    ):
        result = run(*args)
        assert (result.code, result.out, f"error: {what} has no revisions" in result.err) == (2, "", True), result.err
        assert "hint: leave out --revision" in result.err
    write_config('model = "nobody/nothing"\nrevision = "v1"')  # the revision of that model
    assert run("ask", "-m", llava, pictures[0], PROMPT).code == 0
    monkeypatch.setenv("PRUNESID_REVISION", "v1")
    assert run("ask", "-m", llava, pictures[0], PROMPT).code == 0
    assert run("answer", tmp_path / "c", PROMPT).code == 0
    monkeypatch.setenv("PRUNESID_MODEL", str(llava))
    assert "has no revisions" in run("ask", pictures[0], PROMPT).err


def test_unsupported_models_are_refused(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
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
        result = run("ask", "-m", folder, pictures[0], PROMPT)
        assert (result.code, words in result.err, "hint: " in result.err) == (1, True, True), result.err


def test_features_that_are_not_finite_are_reported_with_the_image(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(llava, model)
    weights = load_file(model / "model.safetensors")
    name = next(k for k in weights if "vision_tower" in k and "layers.0.mlp.fc1.weight" in k)
    weights[name] *= 1e30
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    result = run("ask", "-m", model, pictures[0], PROMPT)
    assert (result.code, f"{pictures[0]}: the vision tower gives NaN" in result.err) == (1, True)
    result = run("compress", *pictures[:2], "--out", tmp_path / "c", "-m", model)
    assert (result.code, result.err.count("the vision tower gives NaN")) == (3, 2)


def download(model: Path, home: Path, repo: str = "acme/tiny") -> None:
    """Put a model into the hub's cache, as `hf download` leaves it."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, folder / "snapshots" / COMMIT)


COMMIT = "0123456789" * 4
HUB_VARIABLES = ("HF_HUB_OFFLINE", "PRUNESID_MODEL", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_CACHE")


@pytest.fixture(params=["refused", "silent", "unknown"])
def hub_that_is_down(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a hub that refuses to connect, connects and says nothing, or whose name is unknown."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        endpoints = {"refused": "127.0.0.1:9", "silent": f"127.0.0.1:{port}", "unknown": "hub.invalid"}
        environment = {name: value for name, value in os.environ.items() if name not in HUB_VARIABLES}
        yield environment | {"HF_ENDPOINT": f"http://{endpoints[request.param]}", "HF_HOME": str(tmp_path / "home")}


@pytest.mark.slow
def test_a_downloaded_model_is_used_while_the_hub_is_down(
    hub_that_is_down: dict[str, str], run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """At once, with the same name and revision in the cache as ever, and also to answer from it."""
    download(llava, tmp_path / "home")
    note = "the Hugging Face hub cannot be reached: models are used as they were downloaded"
    caches, start = [], time.monotonic()
    for name, environment in (("down", hub_that_is_down), ("offline", hub_that_is_down | {"HF_HUB_OFFLINE": "1"})):
        cache = tmp_path / name
        done = prunesid("compress", pictures[0], "-m", "acme/tiny", "--out", cache, env=environment)
        assert (done.returncode, done.stderr.splitlines().count(note)) == (0, name == "down"), done.stderr
        caches.append(cache_files(cache))
        described = json.loads(prunesid("cache", "info", cache, "--json", env=environment).stdout)
        assert (described["model"], described["revision"]) == ("acme/tiny", COMMIT)
    assert caches[0] == caches[1]
    done = prunesid("answer", tmp_path / "down", PROMPT, *SHORT, env=hub_that_is_down)
    assert (done.returncode, done.stderr.count(note)) == (0, 1), done.stderr
    expected = run("ask", pictures[0], PROMPT, "-m", llava, *SHORT).out
    assert json.loads(done.stdout)["answer"] == expected.removesuffix("\n")
    assert time.monotonic() - start < 60  # four runs; the libraries alone would repeat requests for minutes


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["llava-original", "mgm_gemma"])
def test_a_tower_of_its_own_is_used_while_the_hub_is_down(
    variant: str, run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    """The checkpoint names the repo of its tower."""
    model = write_checkpoint(variant, tmp_path / "model")
    expected = run("ask", pictures[0], PROMPT, "-m", model, *SHORT)
    config = json.loads((model / "config.json").read_text())
    tower = Path(config["mm_vision_tower"])
    repo = f"openai/{tower.name}"
    download(tower, tmp_path / "home", repo)
    (model / "config.json").write_text(json.dumps(config | {"mm_vision_tower": repo}))
    download(model, tmp_path / "home")
    shutil.rmtree(tower)
    environment = {name: value for name, value in os.environ.items() if name not in HUB_VARIABLES}
    down = environment | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    start = time.monotonic()
    done = prunesid("ask", pictures[0], PROMPT, "-m", "acme/tiny", *SHORT, env=down)
    assert (done.returncode, done.stdout) == (0, expected.out), done.stderr
    assert done.stderr.count("cannot be reached") == 1
    shutil.rmtree(tmp_path / "home" / "hub" / f"models--openai--{tower.name}")
    for name in ("acme/tiny", model):
        done = prunesid("ask", pictures[0], PROMPT, "-m", name, *SHORT, env=down)
        assert f"{repo} is not on this machine and the hub cannot be reached" in done.stderr
    assert time.monotonic() - start < 60


def test_a_model_that_was_not_downloaded_fails_at_once(
    hub_that_is_down: dict[str, str], pictures: list[Path], tmp_path: Path
) -> None:
    start = time.monotonic()
    done = prunesid("ask", pictures[0], PROMPT, "-m", "acme/tiny", "-q", env=hub_that_is_down)
    problem, hint = done.stderr.splitlines()
    assert (done.returncode, hint.startswith("hint: ")) == (1, True)
    assert problem == "error: acme/tiny is not on this machine and the hub cannot be reached"
    assert time.monotonic() - start < 20


def test_the_hub_client_does_not_log_its_retries(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    import logging

    run("ask", "-m", "nobody/nothing", pictures[0], PROMPT, "-q")
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


def test_an_unreachable_hub_is_reported_at_once(pictures: list[Path], tmp_path: Path) -> None:
    """A note precedes the request. No download is tried, because its retries would take half a minute."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PRUNESID_MODEL")
    }
    nowhere = environment | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    ask = ("ask", pictures[0], PROMPT, "-m", "nobody/nothing")
    result = prunesid(*ask, env=nowhere)
    note, error, hint = result.stderr.splitlines()
    assert (result.returncode, note) == (1, "looking for nobody/nothing on the Hugging Face hub")
    assert error == "error: nobody/nothing is not on this machine and the hub cannot be reached"
    assert prunesid(*ask, "-q", env=nowhere).stderr.splitlines() == [error, hint]
