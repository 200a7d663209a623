"""Accuracy against budget: metrics and statistics by hand, the command on the embedded model and on a tiny one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from prunesid_cli.evaluate.metrics import METRICS, fitting, likeness
from prunesid_cli.evaluate.records import Record, read_records
from prunesid_cli.evaluate.report import rows_of, suffering
from prunesid_cli.evaluate.results import Results, Said, Setting
from prunesid_cli.evaluate.statistics import Relative, detection, itself, relative
from tests.conftest import Run


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


def test_the_metric_fits_the_answers() -> None:
    assert [fitting(one) for one in (["Yes"], ["no", "yes"], ["yes sir"], ["a"] * 10, [])] == [
        "yesno", "yesno", "exact", "vqa", "exact",
    ]  # fmt: skip
    assert likeness("a red car", "red") == pytest.approx(2 / 3)
    assert likeness("", ".") == 1


def test_relative_accuracy_and_its_interval() -> None:
    base, about = np.array([1.0] * 80 + [0.0] * 20), range(100)
    worse = base.copy()
    worse[:16] = 0
    found = relative(worse, base, about, 0.9)
    assert found.share == pytest.approx(0.8)
    assert found.low and found.high and 0.7 < found.low < 0.76 and 0.84 < found.high < 0.9
    assert found.sure is not None and found.sure < 0.05
    assert relative(worse, base, about, 0.9) == found
    nothing = np.zeros(5)
    for never in (relative(nothing, nothing, range(5), 0.9), itself(nothing, 0.9)):
        assert (never.accuracy, never.share, never.low, never.high, never.sure) == (0, None, None, None, None)
    assert itself(base, 0.9) == Relative(0.8, 1, 1, 1, 1)


def test_that_no_question_differs_is_not_that_none_ever_does() -> None:
    """An interval like that of Bonett and Price: 1.96 sqrt(2) / (n + 2) to either side."""
    wide = []
    for many in (1, 10, 30, 300):
        found = relative(np.ones(many), np.ones(many), range(many), 0.99)
        assert found.low is not None and found.high is not None and found.sure is not None
        assert found.low < 1 < found.high and found.sure < (0.8 if many <= 30 else 1)
        wide.append(found.high - found.low)
    assert wide == sorted(wide, reverse=True)
    assert wide[2] == pytest.approx(2 * 1.96 * 2**0.5 / 32, rel=0.2)


@pytest.mark.parametrize(("pictures", "each"), [(100, 1), (100, 6), (20, 1)])
def test_the_true_share_lies_in_the_interval(pictures: int, each: int) -> None:
    """About as often as is said, whether or not questions about a picture go wrong together."""
    rng, truth, held, trials = np.random.default_rng(pictures + each), 0.85, 0, 150
    about = np.repeat(np.arange(pictures), each)
    for _ in range(trials):
        base = (rng.random(len(about)) < 0.9).astype(float)
        lost = rng.beta(0.3, 0.3 * truth / (1 - truth), pictures)[about]  # of mean 1 - truth: all of a picture, or none
        found = relative(base * (rng.random(len(about)) >= lost), base, about.tolist())
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert held / trials >= 0.9


def test_detection() -> None:
    told = detection(["yes", "yes", "no", ""], ["yes", "no", "yes", "no"])
    assert told and (told.precision, told.recall, told.yes) == (0.5, 0.5, 0.5)


def test_a_kind_that_suffers_is_named_only_where_that_is_sure() -> None:
    kinds, names = ["colour", "text"] * 40, [(f"{number}.png",) for number in range(80)]
    records = [Record(n, names[n], names[n], "?", ("a",), kinds[n], "exact", str(n)) for n in range(80)]
    settings = [Setting("all", "prunesid"), Setting("16", "prunesid")]
    results = Results(None, "")
    for one in records:
        for setting in settings:
            lost = setting.keep == "16" and one.kind == "text" and one.number % 4 == 1
            results.add(one, [Said(one.key, "", str(setting), "b" if lost else "a", 576, 16, float(not lost))])
    rows = rows_of(settings, records, results)
    assert rows[1].kinds["text"].share == 0.5
    assert suffering(rows[1], records, 0.95) == ["text (50%)"]
    assert suffering(rows[1], records[:30], 0.95) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 2 is no JSON"),
        ("[]", "line 2 is no object"),
        ('{"media": "a.png"}', "needs media and a prompt"),
        ('{"media": [], "prompt": "x"}', "needs media and a prompt"),
        ('{"media": "a.png", "prompt": "x", "answers": "y"}', "unknown field 'answers'"),
        ('{"media": "a.png", "prompt": "x", "metric": "bleu"}', "no metric called 'bleu'"),
        ('{"media": "a.png", "prompt": "x", "answer": "(", "metric": "regex"}', "no regular expression"),
        ('{"media": "a.png", "prompt": "x", "answer": "red", "metric": "yesno"}', "neither yes nor no"),
        ('{"media": "a.png", "prompt": "x", "answer": true}', "neither a text nor a list"),
        ('{"media": "a.png", "prompt": "x", "answer": ""}', "expects an empty answer"),
        ('{"media": "a.png", "prompt": "x", "answer": []}', "has an empty list, but no answer"),
        ('{"media": "a.png", "prompt": "x", "metric": "vqa"}', "has a metric, but no answer"),
        ('{"media": "a.png", "prompt": "x", "kind": 3}', "kind is no text"),
    ],
)
def test_a_bad_record_is_found_before_any_model_is_loaded(run: Run, tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"media": "a.png", "prompt": "x"}\n' + line)
    ran = run("evaluate", path, "-m", tmp_path / "none")
    assert (ran.code, ran.out, words in ran.err) == (2, "", True), ran.err


def test_what_contradicts_itself_or_is_not_there(run: Run, tmp_path: Path) -> None:
    ran = run("evaluate", tmp_path / "none.jsonl")
    assert (ran.code, f"cannot read {tmp_path / 'none.jsonl'}: No such file" in ran.err) == (2, True), ran.err
    ran = run("evaluate", tmp_path / "none.jsonl", "--target", "99%", "--keep", "64")
    assert (ran.code, "--target and --keep contradict" in ran.err) == (2, True), ran.err


def test_paths_are_those_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"media": ["a.png", "/b.png"], "prompt": "x", "answer": 3}')
    (record,) = read_records(path)
    assert (record.media, record.answers) == ((str(tmp_path / "a.png"), "/b.png"), ("3",))


@pytest.fixture(scope="session")
def questions(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two or three questions about each of some scenes."""
    from prunesid_cli.demo.questions import ask_all
    from prunesid_cli.demo.scenes import HELD_OUT, make_scene

    rng, lines = np.random.default_rng(0), []
    for number, picture in enumerate(pictures[:6]):
        for one in ask_all(make_scene(HELD_OUT, number), rng)[:3]:
            lines.append({"media": str(picture), "prompt": one.prompt, "answer": one.answer, "kind": one.kind})
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
    told = json.loads(lines[0])
    asked = json.loads(questions.read_text().splitlines()[told["line"] - 1])
    assert {name: told[name] for name in ("prompt", "kind")} == {name: asked[name] for name in ("prompt", "kind")}
    assert (told["media"], told["expected"]) == ([asked["media"]], [asked["answer"]])
    out.write_text("".join(lines[:17]) + lines[17][:20])  # as an interrupted run leaves it
    again = run(*command, "--json")
    assert again.records == ran.records
    assert sorted(out.read_text().splitlines()) == sorted(before.splitlines())
    table = run(*command)
    assert table.out.splitlines()[1].split()[:3] == ["all", "576", "100.0%"]


def test_answers_go_where_their_pictures_go(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Into another folder; but not to other pictures of the same names."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    for number, picture in enumerate(pictures[:3]):
        shutil.copy(picture, here / f"{number}.png")
    lines = [json.dumps({"media": f"{number}.png", "prompt": "what?"}) + "\n" for number in range(3)]
    (here / "q.jsonl").write_text("".join(lines))

    def asked(folder: Path) -> tuple[list[dict], str]:
        options = ("-m", llava, "--keep", 8, "--max-new-tokens", 4, "--json")
        ran = run("evaluate", folder / "q.jsonl", *options, "-o", folder / "answers.jsonl")
        assert ran.code == 0, ran.err
        return ran.records, (folder / "answers.jsonl").read_text()

    first = asked(here)
    shutil.copytree(here, there)
    (there / "1.png").unlink()
    assert asked(there) == first
    shutil.copy(pictures[3], there / "1.png")
    records, answers = asked(there)
    assert (len(answers.splitlines()), answers.startswith(first[1])) == (6 + 2, True)
    (there / "answers.jsonl").unlink()
    assert asked(there)[0] == records


def test_one_setting_alone_says_what_it_says_among_others(run: Run, llava: Path, questions: Path) -> None:
    """Encoded once for all or not, in batches of one or of eight."""
    some = ["evaluate", questions, "-m", llava, "--max-new-tokens", "4", "--json"]
    whole = run(*some, "--keep", "32,8", "--batch-size", "8").records
    alone = run(*some, "--keep", "8", "--batch-size", "1").records
    assert [whole[0], whole[2]] == alone


def test_without_answers_the_unpruned_ones_are_what_counts(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"media": str(one), "prompt": "what?"}) + "\n" for one in pictures[:4]))
    command = ["evaluate", path, "-m", llava, "--keep", "400,4", "--max-new-tokens", "4", "--json"]
    base, more, less = run(*command, "--divergence").records
    head, *rows = run(*command[:-1], "--divergence").out.splitlines()
    assert head.split()[3] == "agreement" and head.endswith("KL of first token")
    assert rows[0].endswith(" 0.0000 nats")
    assert "KL" not in run(*command[:-1]).out
    assert (base["measure"], base["marks"]["accuracy"], base["divergence"]) == ("agreement", 1, 0)
    assert 0 < more["divergence"] < less["divergence"]
    assert less["marks"]["accuracy"] == less["same"]


def test_divergence_is_measured_of_what_was_answered_without(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path, out = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"media": str(one), "prompt": "what?"}) + "\n" for one in pictures[:3]))
    command = ["evaluate", path, "-m", llava, "--max-new-tokens", "4", "--out", out]
    assert "KL" not in run(*command, "--keep", "64").out
    head, *rows = run(*command, "--keep", "64,32", "--divergence").out.splitlines()
    assert head.endswith("KL of first token") and len(rows) == 3 and all(row.endswith(" nats") for row in rows)
    assert len(out.read_text().splitlines()) == 3 * (2 + 3)
    whole = run(*command, "--keep", "64,32", "--divergence", "--json").records
    assert len(out.read_text().splitlines()) == 3 * (2 + 3), "nothing is asked again"
    assert whole[0]["divergence"] == 0 < whole[1]["divergence"] < whole[2]["divergence"]


def test_records_with_and_without_answers_are_not_mixed_in_silence(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path, lines = tmp_path / "q.jsonl", [{"media": str(one), "prompt": "what?"} for one in pictures[:3]]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:2], lines[2] | {"answer": "a ring"}]))
    ran = run("evaluate", path, "-m", llava, "--keep", "8", "--max-new-tokens", "4")
    assert "2 of 3 records expect no answer" in ran.err
    assert ran.out.split()[3] == "accuracy"


def test_the_smallest_budget_that_reaches_a_target(run: Run, questions: Path) -> None:
    ran = run("evaluate", questions, "--target", "95%")
    assert ran.code == 0, ran.err
    assert "prunesid: --keep " in ran.err and "of the unpruned accuracy" in ran.err
    tried = [line.split()[0] for line in ran.out.splitlines()[2:]]
    assert 2 <= len(tried) <= 5
    assert run("evaluate", questions, "--target", "120%").code == 2


def test_a_picture_that_cannot_be_read_costs_its_own_records(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    media = [str(pictures[0]), "gone.png", str(pictures[1])]
    path.write_text("".join(json.dumps({"media": one, "prompt": "what?"}) + "\n" for one in media))
    ran = run("evaluate", path, "-m", llava, "--keep", "8", "--max-new-tokens", "2", "--json")
    assert (ran.code, "line 2: " in ran.err, "no such file" in ran.err) == (3, True, True)
    assert [record["records"] for record in ran.records] == [2, 2]
    path.write_text(json.dumps({"media": "gone.png", "prompt": "what?"}))
    assert run("evaluate", path, "-m", llava, "--keep", "8").code == 1
