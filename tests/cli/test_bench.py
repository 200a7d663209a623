"""Tests of `bench`: stages, stock model, labels and break-even points. No measured time is compared with a number."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from prunesid_cli import __version__
from prunesid_cli.bench.break_even import BreakEven, Costs, break_even, least_count
from prunesid_cli.bench.random_models import SHAPES, Shape, checkpoint_from_config, llava_config
from prunesid_cli.bench.report import unpruned_deviations
from prunesid_cli.bench.results import STAGES, RoundResult, SettingResult
from prunesid_cli.bench.timing import Lap
from prunesid_cli.inputs.image import load_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget
from prunesid_cli.types import Generation, Placement
from tests.conftest import Run
from tests.models.tiny import write_checkpoint

CPU = Placement(torch.device("cpu"), torch.float32, "sdpa")
SHORT = ("--rounds", "1", "--new-tokens", "3", "--prompt-tokens", "40")
RANDOM = "random weights, for timing only"


def measure(run: Run, *args: object) -> dict[str, Any]:
    ran = run("bench", *SHORT, "--json", *args)
    assert ran.code == 0, ran.err
    (record,) = ran.records
    return record


def without_weights(variant: str, folder: Path) -> Path:
    write_checkpoint(variant, folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return folder


def check_settings(settings: list[dict[str, Any]]) -> None:
    """Check what holds for all measurements."""
    assert settings[0]["setting"] == "stock"
    for result in settings:
        is_stock, stages = result["setting"] == "stock", result["stages"]
        assert tuple(stages) == STAGES
        idle = {name for name, stage in stages.items() if stage["seconds"] == 0}
        assert idle in (({"select", "project"}, {"select"}) if is_stock else (set(),))
        assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
        assert sum(stage["seconds"] for stage in stages.values()) == pytest.approx(result["seconds"])
        assert result["seconds_to_first"] == pytest.approx(result["seconds"] - stages["decoding"]["seconds"])
        assert result["seconds_a_token"] * (result["new_tokens"] - 1) == pytest.approx(stages["decoding"]["seconds"])
        assert result["items_a_second"] == pytest.approx(result["batch_size"] / result["seconds"])
        assert (result["break_even"] is None) == (result["kept"] == result["tokens"])
        assert set(result["cache"]) == (set() if is_stock else {"write", "read"})
        assert result["text_tokens"] == settings[0]["text_tokens"]
        runs = zip(*(stage["runs"] for stage in stages.values()), strict=True)
        totals = [sum(run) for run in runs]
        assert result["spread"] == pytest.approx(max(totals) / min(totals))


def test_the_embedded_model(run: Run, tmp_path: Path) -> None:
    record = measure(run, "--keep", "all,11%,8", "--batch-size", "1,2", "--rounds", "2", "-o", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == record
    settings = record["settings"]
    order = [(result["batch_size"], result["setting"]) for result in settings]
    assert order == [(size, name) for size in (1, 2) for name in ("stock", "all", "11%", "8")]
    for group in (settings[:4], settings[4:]):
        check_settings(group)
        assert [(result["tokens"], result["kept"]) for result in group] == [(576, 576), (576, 576), (576, 63), (576, 8)]
    assert settings[0]["text_tokens"] == 40
    assert record["model"]["name"] == "demo" and record["model"]["weights"] == "the checkpoint's"
    assert "own generate" in record["stock"] and record["media"] == "drawn scenes"
    assert record["versions"]["prunesid"] == __version__ and record["versions"]["torch"] == torch.__version__
    assert record["commit"] is None or re.match("[0-9a-f]{40}", record["commit"])
    assert record["command"].startswith("prunesid bench ") and record["machine"]["cores"]
    assert (record["device"], record["dtype"], record["attention"]) == ("cpu", "float32", "sdpa")


def test_the_table_has_the_measured_figures(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    ran = run("bench", *SHORT, pictures[0], "-m", llava, "--keep", "200,600", "--batch-size", "3", "--out", out)
    assert ran.code == 0, ran.err
    assert "random weights" not in ran.out
    assert "--keep 600 of 576 visual tokens: all are kept" in ran.err
    lines = {line[:34].strip(): line[34:].split() for line in ran.out.splitlines()}
    head = next(line for line in ran.out.splitlines() if line.startswith("batch of 3"))
    assert re.findall(r"[\w -]+, [\d,]+ tokens", head) and "--keep 200, 200 tokens" in head
    (_, pruned, _) = json.loads(out.read_text())["settings"]
    assert lines["whole"][2] == f"{1000 * pruned['seconds']:,.1f}"
    assert {f"{name}:" for name in STAGES} <= {label.split()[0] for label in lines if label}
    assert "decode: open the pictures" in lines and "decoding: further tokens" in lines
    assert "pays from: the least number" in ran.out
    assert lines["times faster"][0] == "1.00" and lines["pays from: visual tokens"][0] == "-"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gemma3", "idefics3", "internvl", "llava_next", "qwen2_5_vl"])
def test_a_configuration_is_enough(variant: str, run: Run, tmp_path: Path) -> None:
    """In every family, the stock model reads as many tokens as `--keep all`, and `--keep 10%` keeps a tenth of them."""
    folder = without_weights(variant, tmp_path / "m")
    record = measure(run, "--random-weights", folder, "--keep", "all,10%", "--batch-size", "2")
    check_settings(record["settings"])
    stock, unpruned, pruned = record["settings"]
    assert record["model"]["weights"] == RANDOM and record["model"]["model_type"] == variant
    assert stock["tokens"] == stock["kept"] == unpruned["kept"] > pruned["kept"]
    assert pruned["kept"] == Budget.parse("10%").tokens(int(stock["tokens"]))
    assert run("bench", "-m", folder).code == 1


def test_the_table_says_that_weights_are_random(run: Run, tmp_path: Path) -> None:
    table = run("bench", *SHORT, "--random-weights", without_weights("llava_next", tmp_path / "m"))
    assert (table.code, RANDOM in table.out) == (0, True)


def test_a_configuration_without_tokenizer_is_enough_for_llava(run: Run, llava: Path, tmp_path: Path) -> None:
    """Its processor is made up like its weights; other families need theirs."""
    (tmp_path / "m").mkdir()
    config = json.loads((llava / "config.json").read_text())
    config["text_config"]["vocab_size"], config["image_token_index"] = 32000, 31999
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    record = measure(run, "--random-weights", tmp_path / "m", "--keep", "50")
    assert [result["kept"] for result in record["settings"]] == [576, 50]
    assert (record["model"]["name"], record["model"]["weights"]) == (str(tmp_path / "m"), RANDOM)
    other = write_checkpoint("qwen2_vl", tmp_path / "q")
    for path in other.iterdir():
        if path.name != "config.json":
            path.unlink()
    ran = run("bench", "--random-weights", other)
    assert (ran.code, "has no tokenizer" in ran.err, "hint: " in ran.err) == (1, True, True)


def test_shapes_have_the_sizes_of_their_models(tmp_path: Path) -> None:
    sizes = {"llava-1.5-7b": 7.06, "llava-1.5-13b": 13.35, "llava-next-7b": 7.06, "llava-next-13b": 13.35}
    assert set(sizes) == set(SHAPES)
    for name, billions in sizes.items():
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(llava_config(SHAPES[name]))
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(billions * 1e9, rel=1e-3)
    shape = Shape(64, 64, 1, 2, has_tiles=True, tower_layers=2, vocabulary_size=600)
    narrow = checkpoint_from_config(llava_config(shape), tmp_path)
    vision = load_family(narrow.model_type).load_vision_half(narrow, CPU)
    square = load_image(write_square(tmp_path / "square.png", 672))
    assert vision.preprocess(square).layout.total == 2880 + 48  # five tiles of 576, and a newline for each row of four


def write_square(path: Path, side: int) -> Path:
    from PIL import Image

    Image.new("RGB", (side, side)).save(path)
    return path


def test_all_tokens_are_kept_where_the_stock_model_cannot_be_asked(run: Run, tmp_path: Path) -> None:
    from tests.films import film  # skips what needs PyAV where it is not installed

    model, clip = write_checkpoint("llava_next_video", tmp_path / "m"), film(tmp_path / "a.mp4", 8)
    record = measure(run, clip, "-m", model, "--keep", "all,10%", "--frames", "4")
    check_settings(record["settings"])
    assert [result["setting"] for result in record["settings"]] == ["stock", "10%"]
    assert "could not be asked" in record["stock"]
    assert record["media"] == [str(clip)]


def test_answers_have_full_length_and_each_token_calls_back(pictures: list[Path]) -> None:
    family, checkpoint = load_family("llava"), resolve(DEMO)
    vision, language = family.load_vision_half(checkpoint, CPU), family.load_language_half(checkpoint, CPU)
    (item,) = Pruner(vision, Budget(), "prunesid", ()).prune(
        vision.encode([vision.preprocess(load_image(pictures[0]))])
    )
    assert isinstance(language, BaseLanguageHalf)
    prompt, calls = language.embed("how many shapes are there?", [item]), list[int]()
    generation = Generation(20, on_token=lambda: calls.append(1))
    (short,) = language.generate([prompt], generation)
    assert len(calls) == short.new_tokens + 1 < 20  # the end is a token
    calls.clear()
    language.generate([prompt], replace(generation, force_full_length=True))
    assert len(calls) == 20


def test_break_even_by_hand() -> None:
    stock = Costs(see=1.0, select=0.0, first=5.0, token=0.5, visual=100)
    pruned = Costs(see=1.0, select=1.0, first=3.0, token=0.4, visual=20, write=0.5, read=0.25)
    # An answer of ten tokens takes 9.5 after the tower in stock and 6.6 pruned: 2.9 less for 80 dropped tokens, so that
    # selection costs as much as 28 of them save.
    # The cache costs 2.5 once and 6.85 per prompt; stock takes 10.5 per prompt, and pruning anew 8.6.
    assert break_even(stock, pruned, text_tokens=30, answer_tokens=10) == BreakEven(1, 20 + 28, 20 + 28 + 30, 1, 2)


def result(setting: str, kept: int, encode: float, decoding: float) -> SettingResult:
    laps = dict.fromkeys(STAGES, Lap(0.0)) | {"encode": Lap(encode), "decoding": Lap(decoding)}
    return SettingResult(setting, 1, 8, [RoundResult(laps, 576, kept, 40)] * 2)


def test_unpruned_settings_that_differ_from_stock_are_found() -> None:
    stock, pruned = result("stock", 576, 1.0, 1.0), result("64", 64, 0.1, 0.1)
    for encode, decoding, expected in (
        (1.09, 1.09, []),
        (1.2, 0.8, [("to the first token", 1.2)]),
        (0.95, 1.5, [("to the end", 1.225)]),
        (0.8, 0.9, [("to the first token", 0.8)]),
    ):
        found = list(unpruned_deviations([stock, result("all", 576, encode, decoding), pruned]))
        assert [total for _, total, _ in found] == [total for total, _ in expected]
        assert [ratio for *_, ratio in found] == pytest.approx([ratio for _, ratio in expected])


def test_break_even_where_selection_is_expensive() -> None:
    stock = Costs(see=1.0, select=0.0, first=5.0, token=0.5, visual=100)
    expensive = Costs(see=1.5, select=3.0, first=4.0, token=0.25, visual=20, write=0.0, read=0.0)
    # Pruning costs 3.5 before the prompt is read, and reading the prompt saves 1; ten more tokens at .25 save the rest.
    found = break_even(stock, expensive, text_tokens=0, answer_tokens=1)
    assert (found.answer_tokens, found.visual_tokens) == (11, 20 + 280)
    assert found.prompts == 3  # the cache costs 4.5 once, and then 4 instead of 6
    never = break_even(stock, replace(expensive, first=6.0, token=0.5), text_tokens=0, answer_tokens=1)
    assert never == BreakEven(None, None, None, None, 1)


def test_a_faster_tower_does_not_count_in_favour_of_pruning() -> None:
    stock = Costs(see=9.0, select=0.0, first=5.0, token=0.5, visual=100)
    pruned = Costs(see=1.0, select=1.0, first=4.5, token=0.5, visual=20)
    found = break_even(stock, pruned, text_tokens=0, answer_tokens=1)
    assert (found.answer_tokens, found.prompts) == (None, 1)


def test_least_count() -> None:
    assert [least_count(cost, saving) for cost, saving in ((0, 0), (-1, -1), (3, 1), (3, 2), (3, 0), (1, -1))] == [
        0,
        0,
        3,
        2,
        None,
        None,
    ]


def test_a_model_that_does_not_fit_is_not_loaded(run: Run, llava: Path, tmp_path: Path) -> None:
    """Its vocabulary has 10^12 words. Where the system overcommits memory, it would kill the process instead."""
    config = json.loads((llava / "config.json").read_text())
    config["text_config"]["vocab_size"] = 10**12
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = run("bench", "--random-weights", tmp_path)
    assert (ran.code, "does not fit into the memory of cpu" in ran.err, "hint: " in ran.err) == (1, True, True)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--batch-size", "0"], 2, "--batch-size 0 is not a number of items"),
        (["--batch-size", "1,two"], 2, "--batch-size two"),
        (["--keep", "0"], 2, "more than nothing"),
        (["--keep", ","], 2, "an empty list"),
        (["--method", "guess"], 2, "no selection method"),
        (["--new-tokens", "1"], 2, "--new-tokens"),
        (["--size", "3"], 2, "--size 3 is not a size"),
        (["--size", "64x64", "a.png"], 2, "--size is for drawn scenes"),
        (["--out", "no/such/b.json"], 2, "no such folder"),
        (["-m", "demo", "--random-weights", "llava-1.5-7b"], 2, "contradict"),
        (["gone.png"], 1, "no such file"),
        (["--random-weights", "./gone"], 1, "no such model folder"),
    ],
)
def test_wrong_options_are_refused(args: list[str], code: int, message: str, run: Run) -> None:
    ran = run("bench", *args)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err and "hint: " in ran.err, ran.err


def test_a_report_replaces_only_a_report(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    notes, report, link = tmp_path / "notes.txt", tmp_path / "report.json", tmp_path / "link.json"
    notes.write_text("dear notes")
    ran = run("bench", "-m", tmp_path / "none", "--out", notes)
    assert (ran.code, "exists and is not a report" in ran.err, notes.read_text()) == (2, True, "dear notes"), ran.err
    link.symlink_to(report)
    for _ in range(2):
        ran = run("bench", *SHORT, pictures[0], "-m", llava, "--out", link, "--json")
        assert (ran.code, [json.loads(report.read_text())], link.is_symlink()) == (0, ran.records, True), ran.err


def test_a_report_goes_to_stdout_by_name(
    run: Run, llava: Path, pictures: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    ran = run("bench", *SHORT, pictures[0], "-m", llava, "--out", "/dev/stdout", "--json")
    assert [json.loads(capfd.readouterr().out)] == ran.records, ran.err


def test_mini_gemini_has_no_random_weights(run: Run, tmp_path: Path) -> None:
    ran = run("bench", "--random-weights", write_checkpoint("mgm", tmp_path))
    assert (ran.code, "cannot be made with random weights" in ran.err) == (1, True)


def test_a_batch_that_does_not_fit_is_named(run: Run, llava: Path) -> None:
    """The attention weights of a prompt of 200,000 tokens take half a terabyte."""
    ran = run("bench", "-m", llava, "--attn", "eager", "--prompt-tokens", "200000", "--rounds", "1")
    assert (ran.code, ran.out) == (1, "")
    assert "not enough memory for --batch-size 1" in ran.err and "fewer --prompt-tokens" in ran.err


def test_the_configured_model_is_measured(run: Run, llava: Path, tmp_path: Path) -> None:
    """Batch sizes are what is measured; they do not come from the configuration file."""
    assert run("models", "use", llava).code == 0
    settings = tmp_path / "config" / "prunesid" / "config.toml"
    settings.write_text(settings.read_text() + 'batch_size = 16\nkeep = "8"\n')
    record = measure(run)
    assert record["model"]["name"] == str(llava)
    assert [(result["batch_size"], result["kept"]) for result in record["settings"]] == [(1, 576), (1, 8)]
