"""Tests of `evaluate`: metrics and statistics against values by hand, the command on the embedded and a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from transformers import LlavaNextImageProcessorPil

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.evaluate.advice import suffering_kinds
from prunesid_cli.evaluate.metrics import METRICS, choose_metric, word_f1
from prunesid_cli.evaluate.records import Record, read_records
from prunesid_cli.evaluate.report import SettingSummary, Target, summarize
from prunesid_cli.evaluate.results import PruningSetting, Results, ScoredAnswer
from prunesid_cli.evaluate.search import BudgetSearch
from prunesid_cli.evaluate.statistics import (
    MIN_CLUSTERS,
    RelativeAccuracy,
    detection,
    paired_difference,
    records_needed,
    relative_accuracy,
)
from tests.conftest import Run
from tests.models.tiny import write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "score"),
    [
        ("exact", "A red car.", ["red car"], 1),
        ("exact", "a red car", ["red"], 0),
        ("exact", "two", ["2", "two"], 1),
        ("contains", "it is a red car, I think", ["red car"], 1),
        ("contains", "a reddish car", ["red"], 0),
        ("yesno", "Yes, there is no doubt", ["yes"], 1),
        ("yesno", "There is no cat", ["yes"], 0),
        ("yesno", "perhaps", ["no"], 0),
        ("vqa", "red", ["red"] * 10, 1),
        ("vqa", "red", ["red"] * 2 + ["blue"] * 8, 0.6),
        ("vqa", "red", ["red"] * 1 + ["blue"] * 9, 0.3),
        ("vqa", "red", ["blue"] * 10, 0),
        ("vqa", "red", ["red"], 1),
        ("recall", "a red car and a dog", ["red car", "cat"], 0.5),
        ("regex", "about 42 people", [r"\b4[0-9]\b"], 1),
    ],
)
def test_metrics(metric: str, answer: str, expected: list[str], score: float) -> None:
    assert METRICS[metric].score(answer, expected) == pytest.approx(score)


def test_the_default_metric_depends_on_the_answers() -> None:
    assert [choose_metric(answers) for answers in (["Yes"], ["no", "yes"], ["yes sir"], ["a"] * 10, [])] == [
        "yesno", "yesno", "exact", "vqa", "exact",
    ]  # fmt: skip
    assert word_f1("a red car", "red") == pytest.approx(2 / 3)
    assert word_f1("", ".") == 1


def test_relative_accuracy_and_its_interval() -> None:
    base, media = np.array([1.0] * 80 + [0.0] * 20), range(100)
    worse = base.copy()
    worse[:16] = 0
    found = relative_accuracy(worse, base, media, 0.9)
    assert found.share == pytest.approx(0.8)
    assert found.low and found.high and 0.7 < found.low < 0.76 and 0.84 < found.high < 0.9
    assert found.confidence is not None and found.confidence < 0.05
    assert relative_accuracy(worse, base, media, 0.9) == found
    assert found.interval and 0.5 < found.interval[0] < 0.58 and 0.7 < found.interval[1] < 0.75
    nothing = np.zeros(50)
    never = relative_accuracy(nothing, nothing, range(50), 0.9)
    assert (never.accuracy, never.share, never.low, never.high, never.confidence) == (0, None, None, None, None)
    assert never.interval and never.interval[0] == 0 < never.interval[1] < 0.1
    itself = relative_accuracy(base, base, media, 0.9)
    assert (itself.accuracy, itself.share, itself.low, itself.high, itself.confidence) == (0.8, 1, None, None, 1)
    assert itself.interval and 0.68 < itself.interval[0] < 0.75 and 0.84 < itself.interval[1] < 0.9


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (12, 3), (5, 40)])
def test_a_paired_difference_has_the_adjusted_interval(won: int, lost: int) -> None:
    """About that of Bonett and Price (2012), whose formula is written out here."""
    ours, theirs = np.zeros(200), np.zeros(200)
    ours[:won], theirs[won : won + lost] = 1, 1
    found = paired_difference(ours, theirs, range(200))
    middle = (won - lost) / 202
    error = 1.96 * np.sqrt(((won + lost + 2) / 202 - middle**2) / 202)
    assert found.mean == pytest.approx((won - lost) / 200)
    assert found.interval == pytest.approx((middle - error, middle + error), abs=0.006)
    assert paired_difference(ours, theirs, [number % 4 for number in range(200)]).interval is None


def test_few_records_give_no_interval() -> None:
    ones = np.ones(40)
    few = relative_accuracy(ones, ones.copy(), [number % (MIN_CLUSTERS - 1) for number in range(40)], 0.9)
    assert few == RelativeAccuracy(1.0, 1.0, count=40)
    enough = relative_accuracy(ones, ones.copy(), [number % MIN_CLUSTERS for number in range(40)], 0.9)
    assert enough.low is not None and enough.interval is not None


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (2, 2), (1, 0)])
def test_the_number_of_records_needed_is_about_right(lost: int, gained: int) -> None:
    """With so many records like these, the bootstrap is as sure as was wanted, and with half as many it is not."""
    base, target = np.array([1.0] * 80 + [0.0] * 20), 0.97
    scores = base.copy()
    scores[:lost], scores[len(base) - gained :] = 0, 1
    needed = records_needed(scores, base, range(100), target, 0.95)
    assert needed is not None

    def confidence(count: int) -> float:
        rows = np.arange(count) % 100 if count >= 100 else np.linspace(0, 99, count).astype(int)
        found = relative_accuracy(scores[rows], base[rows].copy(), range(count), target)
        return found.confidence or 0

    assert confidence(round(needed * 1.3)) > 0.94 > confidence(needed // 2)
    assert records_needed(base * 0.9, base, range(100), target, 0.95) is None
    pairs = records_needed(scores, base, np.repeat(range(50), 2).tolist(), target, 0.95)
    assert pairs is not None and pairs >= needed  # two questions about one picture say less than about two


def test_the_interval_has_a_width_although_no_question_differs() -> None:
    """It is like that of Bonett and Price: 1.96 sqrt(2) / (n + 2) to either side."""
    widths = []
    for count in (10, 20, 30, 300):
        found = relative_accuracy(np.ones(count), np.ones(count), range(count), 0.99)
        assert found.low is not None and found.high is not None and found.confidence is not None
        assert found.low < 1 < found.high and found.confidence < (0.8 if count <= 30 else 1)
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[2] == pytest.approx(2 * 1.96 * 2**0.5 / 32, rel=0.2)


@pytest.mark.parametrize(("pictures", "each"), [(100, 1), (100, 6), (20, 1)])
def test_the_true_share_lies_in_the_interval(pictures: int, each: int) -> None:
    """In at least 90 % of trials, whether or not questions about one picture are right or wrong together."""
    rng, truth, held, trials = np.random.default_rng(pictures + each), 0.85, 0, 80
    media = np.repeat(np.arange(pictures), each)
    for _ in range(trials):
        base = (rng.random(len(media)) < 0.9).astype(float)
        lost = rng.beta(0.3, 0.3 * truth / (1 - truth), pictures)[
            media
        ]  # mean 1 - truth: mostly all questions of a picture, or none
        found = relative_accuracy(base * (rng.random(len(media)) >= lost), base, media.tolist())
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert held / trials >= 0.9


def test_detection() -> None:
    found = detection(["yes", "yes", "no", ""], ["yes", "no", "yes", "no"])
    assert found and (found.precision, found.recall, found.yes) == (0.5, 0.5, 0.5)


def test_a_kind_that_suffers_is_named_only_if_that_is_certain() -> None:
    kinds, names = ["colour", "text"] * 40, [(f"{number}.png",) for number in range(80)]
    records = [Record(n, names[n], names[n], "?", ("a",), kinds[n], "exact", str(n)) for n in range(80)]
    settings = [PruningSetting("all", "prunesid"), PruningSetting("16", "prunesid")]
    results = Results(None, "")
    for record in records:
        for setting in settings:
            lost = setting.keep == "16" and record.kind == "text" and record.line_number % 4 == 1
            text = "b" if lost else "a"
            results.add(record, [ScoredAnswer(record.key, "", str(setting), text, 576, 16, float(not lost))])
    summaries = summarize(settings, records, results)
    assert summaries[1].kinds["text"].share == 0.5
    assert suffering_kinds(summaries[1], records, 0.95) == ["text (50%)"]
    assert suffering_kinds(summaries[1], records[:30], 0.95) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1 is not JSON"),
        ("[]", "line 1 is not an object"),
        ('{"media": "a.png"}', "needs media and a prompt"),
        ('{"media": [], "prompt": "x"}', "needs media and a prompt"),
        ('{"media": "a.png", "prompt": "x", "answers": "y"}', "unknown field 'answers'"),
        ('{"media": "a.png", "prompt": "x", "metric": "bleu"}', "no metric called 'bleu'"),
        ('{"media": "a.png", "prompt": "x", "answer": "(", "metric": "regex"}', "is not a regular expression"),
        ('{"media": "a.png", "prompt": "x", "answer": "red", "metric": "yesno"}', "neither yes nor no"),
        ('{"media": "a.png", "prompt": "x", "answer": true}', "neither a text nor a list"),
        ('{"media": "a.png", "prompt": "x", "answer": ""}', "expects an empty answer"),
        ('{"media": "a.png", "prompt": "x", "answer": []}', "has an empty list, but no answer"),
        ('{"media": "a.png", "prompt": "x", "metric": "vqa"}', "has a metric, but no answer"),
        ('{"media": "a.png", "prompt": "x", "kind": 3}', "kind is not text"),
        ('{"media": "a.png", "prompt": "\\udc80"}', "the prompt holds half of a surrogate pair"),
        ('{"media": "a.png", "prompt": "x", "answer": ["y", "\\ud800"]}', "an answer holds half of a surrogate pair"),
        ('{"media": "a.png", "prompt": "x", "kind": "\\ud800"}', "the kind holds half of a surrogate pair"),
        ('{"media": "a\\ud800.png", "prompt": "x"}', r"no file can have the name 'a\ud800.png'"),
        ('{"media": "a\\u0000.png", "prompt": "x"}', r"a name cannot hold a NUL: a\x00.png"),
        ('{"media": "a.png", "prompt": "x", "answer": NaN}', "answer is not a finite number"),
        ('{"media": "a.png", "prompt": "x", "answer": [1e400]}', "answer is not a finite number"),
        ('{"media": "a.png", "prompt": "x", "answer": ' + "9" * 5000 + "}", "holds a number of too many digits"),
    ],
)
def test_a_bad_record_is_named(run: Run, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line)
    ran = run("evaluate", path, "-m", tmp_path / "none")
    assert (ran.code, ran.out, f"{path}, line 1" in ran.err, message in ran.err) == (2, "", True, True), ran.err
    assert "hint: {" not in ran.err and "sys." not in ran.err
    good = '{"media": "a.png", "prompt": "what?"}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    records, errors = read_records(path)
    assert ([record.line_number for record in records], len(errors)) == ([1, 3], 1)


def test_a_bad_record_is_skipped(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    path, good = tmp_path / "q.jsonl", json.dumps({"media": str(pictures[0]), "prompt": "what?"})
    path.write_text(f"{good}\nnonsense\n{good}\n")
    ran = run("evaluate", path, "-m", llava, "--keep", "8", "--max-new-tokens", 2, "--json")
    assert (ran.code, f"{path}, line 2 is not JSON" in ran.err) == (3, True), ran.err
    assert [record["records"] for record in ran.records] == [2, 2]


def test_contradictions_and_missing_files_are_refused(run: Run, tmp_path: Path) -> None:
    ran = run("evaluate", tmp_path / "none.jsonl")
    assert (ran.code, f"cannot read {tmp_path / 'none.jsonl'}: No such file" in ran.err) == (2, True), ran.err
    ran = run("evaluate", tmp_path / "none.jsonl", "--target", "99%", "--keep", "64")
    assert (ran.code, "--target and --keep contradict" in ran.err) == (2, True), ran.err


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"media": ["a.png", "/b.png"], "prompt": "x", "answer": 3}')
    (record,), errors = read_records(path)
    assert errors == []
    assert (record.media, record.answers) == ((str(tmp_path / "a.png"), "/b.png"), ("3",))


@pytest.fixture(scope="session")
def questions(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two or three questions about each of some scenes."""
    from prunesid_cli.demo.questions import ask_all
    from prunesid_cli.demo.scenes import HELD_OUT, make_scene

    rng, lines = np.random.default_rng(0), []
    for number, picture in enumerate(pictures[:6]):
        for question in ask_all(make_scene(HELD_OUT, number), rng)[:3]:
            lines.append({"media": str(picture), **asdict(question)})
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_embedded_model_is_evaluated(run: Run, questions: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "answers.jsonl", tmp_path / "plot.png"
    command = ["evaluate", questions, "--keep", "64,8", "--method", "prunesid,random", "-o", out]
    ran = run(*command, "--json", "--plot", plot)
    assert ran.code == 0, ran.err
    names = [record["setting"] for record in ran.records]
    assert names == ["all", "64 prunesid", "8 prunesid", "64 random", "8 random"]
    base, first, *_, last = ran.records
    assert base["marks"]["accuracy"] > 0.85 and base["same"] == 1
    assert (first["kept"], first["records"]) == (64, len(questions.read_text().splitlines()))
    assert last["marks"]["accuracy"] < base["marks"]["accuracy"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    before = out.read_text()
    lines = before.splitlines(keepends=True)
    assert len(lines) == 5 * first["records"]
    line = json.loads(lines[0])
    question = json.loads(questions.read_text().splitlines()[line["line"] - 1])
    assert (line["prompt"], line["kind"]) == (question["prompt"], question["kind"])
    assert (line["media"], line["expected"]) == ([question["media"]], [question["answer"]])
    out.write_text("".join(lines[:-17]) + lines[-17][:20])  # as an interrupted run leaves it
    again = run(*command, "--json")
    assert again.records == ran.records
    assert sorted(out.read_text().splitlines()) == sorted(before.splitlines())
    table = run(*command)
    assert table.out.splitlines()[1].split()[:3] == ["all", "576", "100.0%"]


def test_a_record_that_the_model_refuses_fails_alone(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompt has too many places for images, or the image processor of transformers fails on its picture."""
    model = write_checkpoint("llava_next", tmp_path / "model")
    Image.new("RGB", (37, 11)).save(tmp_path / "odd.png")
    preprocess = LlavaNextImageProcessorPil.preprocess

    def fail_on_odd(self: LlavaNextImageProcessorPil, images: Any, *args: Any, **options: Any) -> Any:
        if images[0].width > 3 * images[0].height:
            raise ValueError("on purpose")
        return preprocess(self, images, *args, **options)

    monkeypatch.setattr(LlavaNextImageProcessorPil, "preprocess", fail_on_odd)
    questions = [(pictures[0], "what?"), (pictures[0], "<image> <image>"), ("odd.png", "what?"), (pictures[1], "what?")]
    lines = [json.dumps({"media": str(media), "prompt": prompt}) for media, prompt in questions]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(lines))
    command = ("evaluate", path, "-m", model, "--keep", "8", "--max-new-tokens", 2, "--json", "--divergence")
    hint = f"see more with: prunesid evaluate {path} -m {model}"
    for size, words, *debug in ((1, hint), (8, "in fail_on_odd", "--debug")):
        ran = run(*command, "--batch-size", size, *debug)
        assert (ran.code, [record["records"] for record in ran.records]) == (3, [2, 2]), ran.err
        assert "line 2: " in ran.err and f"line 3: {tmp_path}/odd.png: the image processor failed" in ran.err, ran.err
        assert words in ran.err, ran.err
    path.write_text("\n".join([lines[0], lines[3]]))
    divergences = [{"divergence": pytest.approx(record["divergence"], abs=1e-5)} for record in ran.records]
    expected = [record | close for record, close in zip(ran.records, divergences, strict=True)]
    assert [record | {"records": 2} for record in run(*command).records] == expected


@pytest.mark.parametrize(
    "contents",
    [b"notes", b"notes\n", b'{"line": 1, "media": [], "a": 1}', b'{"media": "a.png"}\n', b"\n", b"\x89PNG"],
)
def test_a_file_with_other_contents_stays(run: Run, questions: Path, tmp_path: Path, contents: bytes) -> None:
    out = tmp_path / "notes"
    out.write_bytes(contents)
    ran = run("evaluate", questions, "--out", out)
    assert (ran.code, "line 1 is not an answer of ours" in ran.err, out.read_bytes()) == (2, True, contents), ran.err


def test_a_second_run_is_refused_and_leaves_no_file(run: Run, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with FileLock(tmp_path / ".answers.jsonl.lock"):
        ran = run("evaluate", questions, "--out", out)
    assert (ran.code, "another run is writing" in ran.err, out.exists()) == (1, True, False), ran.err
    (tmp_path / "link.jsonl").symlink_to(out)
    with FileLock(tmp_path / ".answers.jsonl.lock"):
        assert "another run is writing" in run("evaluate", questions, "--out", tmp_path / "link.jsonl").err
    ran = run("evaluate", questions, "--out", tmp_path / "none" / "answers.jsonl")
    assert (ran.code, "no such folder" in ran.err) == (2, True), ran.err


def test_a_run_that_fails_leaves_no_empty_file(run: Run, questions: Path, llava: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "answers.jsonl"
    shutil.copytree(llava, model)
    (model / "model.safetensors").write_bytes(b"damaged")
    ran = run("evaluate", questions, "-m", model, "--out", out)
    assert (ran.code, out.exists()) == (1, False), ran.err


def test_answers_go_to_stdout_by_name(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the table to stderr."""
    path, out = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    path.write_text(json.dumps({"media": str(pictures[0]), "prompt": "what?"}))
    command = ("evaluate", path, "-m", llava, "--keep", "8", "--max-new-tokens", 2)
    ran = run(*command, "--out", out)
    capfd.readouterr()
    again = run(*command, "--out", "/dev/stdout")
    assert (again.code, again.out, capfd.readouterr().out) == (0, "", out.read_text())
    assert ran.out in again.err and ran.out.startswith("setting")
    assert [json.loads(line)["setting"] for line in run(*command, "--out", "/dev/null", "--json").out.splitlines()] == [
        "all", "8 prunesid",
    ]  # fmt: skip


def test_a_plot_replaces_only_a_plot(run: Run, questions: Path, tmp_path: Path) -> None:
    """This is found before a model is loaded."""
    (tmp_path / "notes.png").write_text("dear notes")
    (tmp_path / "folder.png").mkdir()
    for plot, message in (
        (tmp_path / "notes.png", "exists and is not a plot"),
        (tmp_path / "folder.png", "exists and is not a plot"),
        (tmp_path / "none" / "plot.png", "no such folder"),
        (questions, "is not the name of a picture"),
    ):
        ran = run("evaluate", questions, "-m", tmp_path / "none", "--plot", plot)
        assert (ran.code, message in ran.err) == (2, True), ran.err
    assert (tmp_path / "notes.png").read_text() == "dear notes"


def test_a_regular_expression_has_a_time_limit() -> None:
    assert METRICS["regex"].score("a" * 200, ["a+b?$"]) == 1
    with pytest.raises(PruneSIDError, match="takes longer than 1 s"):
        METRICS["regex"].score("a" * 200 + "!", ["(a|aa)+$"])


@pytest.mark.slow
def test_a_record_with_a_slow_expression_fails_alone(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path, out = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    slow = "^(.|..|...)*[\u2602\u2603]$"  # no answer has these characters
    questions = [
        {"media": str(picture), "prompt": "what?", "answer": pattern, "metric": "regex"}
        for picture, pattern in zip(pictures, (".", slow, "x*"), strict=False)
    ]
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    ran = run("evaluate", path, "-m", llava, "--keep", "8", "--max-new-tokens", 64, "--json", "--out", out)
    assert (ran.code, "line 2: its regular expression takes longer" in ran.err) == (3, True), ran.err
    assert [record["records"] for record in ran.records] == [2, 2]
    assert {json.loads(line)["line"] for line in out.read_text().splitlines()} == {1, 3}


def test_answers_can_be_moved_with_their_pictures(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """They stay valid in another folder, but not for other pictures of the same names."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    for number, picture in enumerate(pictures[:3]):
        shutil.copy(picture, here / f"{number}.png")
    lines = [json.dumps({"media": f"{number}.png", "prompt": "what?"}) + "\n" for number in range(3)]
    (here / "q.jsonl").write_text("".join(lines))

    def evaluate(folder: Path) -> tuple[list[dict], str]:
        options = ("-m", llava, "--keep", 8, "--max-new-tokens", 4, "--json")
        ran = run("evaluate", folder / "q.jsonl", *options, "-o", folder / "answers.jsonl")
        assert ran.code == 0, ran.err
        return ran.records, (folder / "answers.jsonl").read_text()

    first = evaluate(here)
    shutil.copytree(here, there)
    (there / "1.png").unlink()
    assert evaluate(there) == first
    shutil.copy(pictures[3], there / "1.png")
    records, answers = evaluate(there)
    assert (len(answers.splitlines()), answers.startswith(first[1])) == (6 + 2, True)
    (there / "answers.jsonl").unlink()
    assert evaluate(there)[0] == records


def test_a_setting_gives_the_same_alone_and_among_others(run: Run, llava: Path, questions: Path) -> None:
    """With media encoded once for all settings or not, and in batches of one or of eight."""
    command = ["evaluate", questions, "-m", llava, "--max-new-tokens", "4", "--json"]
    both = run(*command, "--keep", "32,8", "--batch-size", "8").records
    alone = run(*command, "--keep", "8", "--batch-size", "1").records
    assert [both[0], both[2]] == alone


def test_without_expected_answers_the_unpruned_ones_count(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"media": str(picture), "prompt": "what?"}) + "\n" for picture in pictures[:4]))
    command = ["evaluate", path, "-m", llava, "--keep", "400,4", "--max-new-tokens", "4", "--json"]
    base, more, less = run(*command, "--divergence").records
    head, *rows = run(*command[:-1], "--divergence").out.splitlines()
    assert head.split()[3] == "agreement" and head.endswith("KL of first token")
    assert rows[0].endswith(" 0.0000 nats")
    assert "KL" not in run(*command[:-1]).out
    assert (base["measure"], base["marks"]["accuracy"], base["divergence"]) == ("agreement", 1, 0)
    assert 0 < more["divergence"] < less["divergence"]
    assert less["marks"]["accuracy"] == less["same"]


def test_divergence_is_measured_for_records_answered_without_it(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path, out = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"media": str(picture), "prompt": "what?"}) + "\n" for picture in pictures[:3]))
    command = ["evaluate", path, "-m", llava, "--max-new-tokens", "4", "--out", out]
    assert "KL" not in run(*command, "--keep", "64").out
    head, *rows = run(*command, "--keep", "64,32", "--divergence").out.splitlines()
    assert head.endswith("KL of first token") and len(rows) == 3 and all(row.endswith(" nats") for row in rows)
    assert len(out.read_text().splitlines()) == 3 * (2 + 3)
    records = run(*command, "--keep", "64,32", "--divergence", "--json").records
    assert len(out.read_text().splitlines()) == 3 * (2 + 3), "nothing is asked again"
    assert records[0]["divergence"] == 0 < records[1]["divergence"] < records[2]["divergence"]


def test_a_warning_says_that_some_records_expect_no_answer(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path, lines = tmp_path / "q.jsonl", [{"media": str(picture), "prompt": "what?"} for picture in pictures[:3]]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:2], lines[2] | {"answer": "a ring"}]))
    ran = run("evaluate", path, "-m", llava, "--keep", "8", "--max-new-tokens", "4")
    assert "2 of 3 records expect no answer" in ran.err
    assert ran.out.split()[3] == "accuracy"


@pytest.mark.parametrize(("smallest", "tried"), [(2, [2, 4, 16]), (8, [4, 8, 16]), (99, [16, 64])])
def test_the_search_halves_the_range(smallest: int, tried: list[int]) -> None:
    search = BudgetSearch([PruningSetting(str(2**n), "prunesid") for n in range(1, 7)], Target(0.9))
    while (setting := search.next_candidate()) is not None:
        share = float(int(setting.keep) >= smallest)
        accuracy = RelativeAccuracy(1.0, 1.0, confidence=0.99 if share else 0.9)
        search.update(SettingSummary(setting, float(setting.keep), 0.1, accuracy, {}, 1.0, 1.0, None, None))
    assert [int(setting.keep) for setting in search.tried] == tried


@pytest.mark.slow
def test_the_smallest_budget_that_reaches_a_target(run: Run, questions: Path) -> None:
    ran = run("evaluate", questions, "--target", "99%")
    assert "18 records are too few for a budget that is 95% sure to keep 99% of the unpruned accuracy" in ran.err
    assert re.search(r"the smallest that may: --keep \d+, \d+% sure \(\d+ of 18 answers changed", ran.err), ran.err
    assert "more would make it 95% sure" in ran.err
    ran = run("evaluate", ROOT / "samples/questions.jsonl", "--target", "80%", "--sure", "90%")
    assert ran.code == 0, ran.err
    assert re.search(
        r"prunesid: --keep \d+ is (over )?9\d% sure to keep 80% of the unpruned accuracy "
        r"\(\d+ of \d+ answers changed; the estimate is \d+\.\d%\)", ran.err
    ), ran.err  # fmt: skip
    assert run("evaluate", questions, "--sure", "90%").code == 2
    tried = [line.split()[0] for line in ran.out.splitlines()[2:]]
    assert 2 <= len(tried) <= 5
    assert run("evaluate", questions, "--target", "120%").code == 2


def test_a_picture_that_cannot_be_read_fails_only_its_records(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    media = [str(pictures[0]), "gone.png", str(pictures[1])]
    path.write_text("".join(json.dumps({"media": name, "prompt": "what?"}) + "\n" for name in media))
    ran = run("evaluate", path, "-m", llava, "--keep", "8", "--max-new-tokens", "2", "--json")
    assert (ran.code, "line 2: " in ran.err, "no such file" in ran.err) == (3, True, True)
    assert [record["records"] for record in ran.records] == [2, 2]
    path.write_text(json.dumps({"media": "gone.png", "prompt": "what?"}))
    assert run("evaluate", path, "-m", llava, "--keep", "8").code == 1


def test_an_engine_without_scores_is_refused(run: Run, questions: Path) -> None:
    ran = run("evaluate", questions, "--divergence", "--engine", "vllm")
    assert (ran.code, ran.out) == (2, "")
    assert "--divergence needs scores" in ran.err
