"""The plug-in for lmms-eval, by its own command line on tasks made here: it answers as `prunesid` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunesid_cli.errors import PruneSIDError
from tests.conftest import Run
from tests.models.tiny import write

if find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed: pip install '.[lmms]'", allow_module_level=True)

YAML = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
task: {task}
test_split: test
output_type: {output}
doc_to_visual: !function visuals.{visuals}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 12
  temperature: 0
  until: ["ASSISTANT:"]
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
VISUALS = """
from PIL import Image

def pictures(document):
    return [Image.open(path) for path in document["media"]]

def files(document):
    return document["media"]
"""
Document = dict[str, Any]


def task(
    folder: Path, name: str, documents: list[Document], visuals: str = "pictures", output: str = "generate_until"
) -> None:
    """A task of these documents, in a folder of tasks."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in documents))
    (folder / "visuals.py").write_text(VISUALS)
    metric, more = ("exact_match", "") if output == "generate_until" else ("acc", 'doc_to_choice: ["yes", "no"]\n')
    text = YAML.format(data=data, task=name, output=output, visuals=visuals, metric=metric)
    (folder / f"{name}.yaml").write_text(text + more)


def evaluate(folder: Path, tasks: str, arguments: str, *options: str) -> subprocess.CompletedProcess[str]:
    """lmms-eval in a process of its own, which can reach nothing."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-m", "lmms_eval", "--model", "prunesid", "--model_args", arguments, "--tasks", tasks]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def samples(folder: Path, name: str) -> list[Document]:
    """What was logged of each document, in their order."""
    (path,) = (folder / "out").rglob(f"*_samples_{name}.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda one: one["doc_id"])


def told(folder: Path, name: str) -> list[str]:
    return [one["filtered_resps"] for one in samples(folder, name)]


@pytest.fixture(scope="session")
def questions(pictures: list[Path]) -> list[Document]:
    """Three about each of five scenes, not one after the other."""
    from prunesid_cli.demo.questions import ask_all
    from prunesid_cli.demo.scenes import HELD_OUT, make_scene

    rng = np.random.default_rng(0)
    asked = [ask_all(make_scene(HELD_OUT, number), rng)[:3] for number in range(5)]
    return [
        {"media": [str(pictures[number])], "prompt": asked[number][turn].prompt, "answer": asked[number][turn].answer}
        for turn in range(3)
        for number in range(5)
    ]


def by_hand(run: Run, model: object, documents: list[Document], *options: str) -> list[str]:
    """The answers of `prunesid ask`, question by question."""
    some = ("-m", model, "--max-new-tokens", "12", *options)
    return [run("ask", *one["media"], one["prompt"], *some).out.strip() for one in documents]


@pytest.mark.slow
def test_the_embedded_model_answers_as_ask_does(run: Run, questions: list[Document], tmp_path: Path) -> None:
    """In batches of which the last is smaller, with the scores that lmms-eval counts."""
    task(tmp_path, "scenes", questions)
    ran = evaluate(tmp_path, "scenes", "pretrained=demo,keep=64", "--batch_size", "4")
    assert told(tmp_path, "scenes") == by_hand(run, "demo", questions, "-k", "64"), ran.stderr
    (path,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(path.read_text())["results"]["scenes"]["exact_match,none"] > 0.8


@pytest.mark.slow
def test_several_pictures_and_clips_of_another_family(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    from tests.films import film

    model = write("qwen2_5_vl", tmp_path / "model")
    texts = ["what changed?", "first <image>, then <image>: what changed?", "is <image> the same as this: <image>"]
    pairs = [
        {"media": [str(pictures[at]), str(pictures[at + 1])], "prompt": text, "answer": "x"}
        for at, text in enumerate(texts)
    ]
    clips = [
        {"media": [str(film(tmp_path / "a.mp4"))], "prompt": text, "answer": "x"} for text in ("what?", "what happens?")
    ]
    task(tmp_path, "pairs", pairs)
    task(tmp_path, "clips", clips, "files")
    arguments = f"pretrained={model},keep=20%,frames=4,method=random"
    ran = evaluate(tmp_path, "pairs,clips", arguments, "--batch_size", "2")
    options = ("-k", "20%", "--frames", "4", "--method", "random")
    assert told(tmp_path, "pairs") == by_hand(run, model, pairs, *options), ran.stderr
    assert told(tmp_path, "clips") == by_hand(run, model, clips, *options)
    assert len(set(told(tmp_path, "pairs"))) == len(pairs)  # or nothing would have been told apart


@pytest.mark.slow
def test_dynamic_is_that_of_a_folder(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """The average over the distinct pictures of a task is exact, whatever else is asked, and however often each is."""
    some, prompt = pictures[:6], "what is shown?"
    documents = [{"media": [str(one)], "prompt": prompt, "answer": "x"} for one in [*some, *some[:3]]]
    task(tmp_path, "six", documents)
    task(tmp_path, "two", documents[4:6])
    ran = evaluate(tmp_path, "two,six", "pretrained=demo,keep=40,dynamic=true", "--batch_size", "4")
    run("compress", *some, "--out", tmp_path / "cache", "-m", "demo", "-k", "40", "--dynamic")
    records = run("answer", tmp_path / "cache", prompt, "--max-new-tokens", "12", "--json").records
    expected = {record["source"]: record for record in records}
    assert [one["filtered_resps"] for one in samples(tmp_path, "six")] == [
        expected[one["media"][0]]["answer"] for one in documents
    ], ran.stderr
    read = [one["token_counts"][0]["input_tokens"] for one in samples(tmp_path, "six")]
    kept = [expected[one["media"][0]]["kept"] for one in documents]
    assert len({one - own for one, own in zip(read, kept, strict=True)}) == 1 < len(set(kept))
    two = [one["token_counts"][0]["input_tokens"] for one in samples(tmp_path, "two")]
    assert sum(two) - 2 * (read[0] - kept[0]) == 2 * 40


@pytest.mark.slow
def test_what_is_not_done_is_refused_by_name(pictures: list[Path], tmp_path: Path) -> None:
    document = {"media": [str(pictures[0])], "prompt": "is there a star?", "answer": "yes"}
    task(tmp_path, "choices", [document], output="multiple_choice")
    ran = evaluate(tmp_path, "choices", "pretrained=demo", "--batch_size", "1")
    assert "choices asks how likely given answers are, which --model prunesid does not answer; take a" in ran.stderr


# In this process: what needs no command line.


def model_of(**arguments: Any) -> Any:
    from prunesid_cli.integrations.lmms_eval.model import PruneSID

    return PruneSID(**{"pretrained": "demo", "keep": 64, **arguments})


def generated(model: Any, documents: list[Document], settings: Document, times: int = 1) -> list[str]:
    """What is said of some documents, each asked so many times, as lmms-eval does that."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"made": {"test": documents}}
    requests = [
        Instance(
            "generate_until",
            (one["prompt"], settings, lambda document: document["media"], number, "made", "test"),
            0,
            {"task": "made", "doc_id": number, "repeats": times},
        )
        for number, one in enumerate(documents)
    ]
    return [one.text for one in model.generate_until([one for one in requests for _ in range(times)])]


def test_a_picture_that_is_asked_often_is_encoded_once(questions: list[Document]) -> None:
    """As long as there is room to remember it; without, nothing but time is lost."""
    documents = [{**one, "media": [Image.open(one["media"][0])]} for one in questions]
    model, forgetful = model_of(batch_size="4"), model_of(batch_size="4")
    forgetful.eyes.remembered.room = 1
    said = generated(model, documents, {"max_new_tokens": 8})
    assert generated(forgetful, documents, {"max_new_tokens": 8}) == said
    assert (model.eyes.encoded, forgetful.eyes.encoded) == (5, 15)


@pytest.mark.parametrize(
    ("settings", "answers", "words"),
    [
        ({"max_new_tokens": 2}, 1, 2),
        ({"max_new_tokens": 20, "until": [" "]}, 1, 1),
        ({"max_new_tokens": 20, "temperature": 9.0}, 3, None),
        ({"max_new_tokens": 20, "temperature": 9.0, "do_sample": False, "top_p": 0.5}, 1, None),
    ],
)
def test_how_a_task_wants_to_be_answered(
    questions: list[Document], settings: Document, answers: int, words: int | None
) -> None:
    """Of several answers that are sampled to one question, each is another; the settings are left as they were."""
    before = dict(settings)
    said = generated(model_of(), [{**questions[0], "prompt": "what is shown?"}], settings, times=3)
    assert (len(said), len(set(said))) == (3, answers)
    assert words is None or len(said[0].split()) == words
    assert settings == before


def test_what_is_sampled_depends_on_no_other_question(questions: list[Document]) -> None:
    settings, some = {"max_new_tokens": 8, "temperature": 9.0}, questions[:3]
    alone = [generated(model_of(), [one], settings)[0] for one in some]
    assert generated(model_of(batch_size="4"), some, settings) == alone


def test_a_picture_is_laid_on_white_and_a_place_too_many_is_no_error(
    run: Run, questions: list[Document], tmp_path: Path
) -> None:
    seen = Image.open(questions[0]["media"][0]).convert("RGBA")
    seen.putalpha(Image.linear_gradient("L").resize(seen.size))
    seen.save(tmp_path / "a.png")
    document = {"media": [[seen]], "prompt": "what <image> is <image> shown?"}
    said = generated(model_of(), [document], {"max_new_tokens": 12})
    assert said == by_hand(run, "demo", [{"media": [tmp_path / "a.png"], "prompt": "what  is  shown?"}], "-k", "64")


@pytest.mark.parametrize(
    ("media", "settings", "words"),
    [
        ([], {}, "made, document 0: a prompt without a picture; ask tasks"),
        ([{"array": []}], {}, "made, document 0: neither a picture nor a file: dict"),
        (["gone.png"], {}, "gone.png: no such file"),
        (["gone.png"], {"num_beams": 5}, "made wants a beam search, which is not done here; --gen_kwargs num_beams=1"),
        (["gone.png"], {"temperature": 1, "top_p": 0.9}, "made samples by top_p or top_k"),
    ],
)
def test_a_request_that_cannot_be_answered_ends_the_run(media: list[Any], settings: Document, words: str) -> None:
    """A score over fewer documents would be no score."""
    with pytest.raises(PruneSIDError, match=words):
        generated(model_of(), [{"media": media, "prompt": "what is shown?"}], settings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pretrained": None}, "no model is named; pretrained=llava-hf/llava-1.5-7b-hf"),
        ({"kep": 64}, "no model argument 'kep'; one of: pretrained, revision, keep"),
        ({"keep": 0.11}, "cannot read '0.11' as a budget; did you mean 11%"),
        ({"dynamic": "maybe"}, "dynamic=maybe is neither true nor false"),
        ({"method": "best"}, "no selection method called 'best'"),
        ({"frames": 8, "fps": 1}, "frames and fps contradict each other"),
        ({"frames": 0}, "frames=0 is no number of frames"),
        ({"fps": "x"}, "fps=x is no rate"),
        ({"dtype": "fp8"}, "dtype=fp8 is unknown; one of: auto, bf16"),
        ({"attn": "paged"}, "attn=paged is unknown"),
        ({"batch_size": "many"}, "--batch_size many is no number"),
        ({"trust_remote_code": True}, "needs code of its own; leave out trust_remote_code"),
    ],
)
def test_arguments_are_checked_before_weights_are_read(arguments: Document, words: str) -> None:
    with pytest.raises(PruneSIDError, match=words):
        model_of(**{"pretrained": "nowhere/nothing", **arguments})
