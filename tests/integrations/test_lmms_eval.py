"""Tests of the lmms-eval plug-in, through the command line of lmms-eval: it gives the answers of `prunesid ask`."""

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
from tests.models.tiny import write_checkpoint

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
    """Write a task of these documents into a folder of tasks."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "visuals.py").write_text(VISUALS)
    metric, more = ("exact_match", "") if output == "generate_until" else ("acc", 'doc_to_choice: ["yes", "no"]\n')
    text = YAML.format(data=data, task=name, output=output, visuals=visuals, metric=metric)
    (folder / f"{name}.yaml").write_text(text + more)


def evaluate(folder: Path, tasks: str, arguments: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run lmms-eval in a process without network access."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-m", "lmms_eval", "--model", "prunesid", "--model_args", arguments, "--tasks", tasks]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def samples(folder: Path, name: str) -> list[Document]:
    """What was logged for each document, in order."""
    (path,) = (folder / "out").rglob(f"*_samples_{name}.jsonl")
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(logged, key=lambda sample: sample["doc_id"])


def answers(folder: Path, name: str) -> list[str]:
    return [sample["filtered_resps"] for sample in samples(folder, name)]


@pytest.fixture(scope="session")
def questions(pictures: list[Path]) -> list[Document]:
    """Three about each of five scenes; questions about one scene are not consecutive."""
    from prunesid_cli.demo.questions import ask_all
    from prunesid_cli.demo.scenes import HELD_OUT, make_scene

    rng = np.random.default_rng(0)
    asked = [ask_all(make_scene(HELD_OUT, number), rng)[:3] for number in range(5)]
    return [
        {"media": [str(pictures[number])], "prompt": asked[number][turn].prompt, "answer": asked[number][turn].answer}
        for turn in range(3)
        for number in range(5)
    ]


def ask(run: Run, model: object, documents: list[Document], *options: object) -> list[str]:
    """The answers of `prunesid ask`, question by question."""
    options = ("-m", model, "--max-new-tokens", "12", *options)
    return [run("ask", *document["media"], document["prompt"], *options).out.strip() for document in documents]


@pytest.mark.slow
def test_the_embedded_model_answers_as_ask_does(run: Run, questions: list[Document], tmp_path: Path) -> None:
    """In batches, the last one smaller, with the scores that lmms-eval computes."""
    task(tmp_path, "scenes", questions)
    ran = evaluate(tmp_path, "scenes", "pretrained=demo,keep=64", "--batch_size", "4")
    assert answers(tmp_path, "scenes") == ask(run, "demo", questions, "-k", "64"), ran.stderr
    (path,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(path.read_text())["results"]["scenes"]["exact_match,none"] > 0.8


@pytest.mark.slow
def test_several_pictures_and_clips_of_another_family(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    from tests.films import film

    model = write_checkpoint("qwen2_5_vl", tmp_path / "model")
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
    assert answers(tmp_path, "pairs") == ask(run, model, pairs, *options), ran.stderr
    assert answers(tmp_path, "clips") == ask(run, model, clips, *options)
    assert len(set(answers(tmp_path, "pairs"))) == len(pairs)  # or a mix-up would not be noticed


@pytest.mark.slow
def test_dynamic_budgets_are_those_of_a_folder(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """The average over the distinct pictures of a task is exact, whatever other tasks ask, and however often."""
    six, prompt = pictures[:6], "what is shown?"
    documents = [{"media": [str(path)], "prompt": prompt, "answer": "x"} for path in [*six, *six[:3]]]
    task(tmp_path, "six", documents)
    task(tmp_path, "two", documents[4:6])
    ran = evaluate(tmp_path, "two,six", "pretrained=demo,keep=40,dynamic=true", "--batch_size", "4")
    run("compress", *six, "--out", tmp_path / "cache", "-m", "demo", "-k", "40", "--dynamic")
    records = run("answer", tmp_path / "cache", prompt, "--max-new-tokens", "12", "--json").records
    expected = {record["source"]: record for record in records}
    assert answers(tmp_path, "six") == [expected[document["media"][0]]["answer"] for document in documents], ran.stderr
    read = [sample["token_counts"][0]["input_tokens"] for sample in samples(tmp_path, "six")]
    kept = [expected[document["media"][0]]["kept"] for document in documents]
    assert len({length - count for length, count in zip(read, kept, strict=True)}) == 1 < len(set(kept))
    two = [sample["token_counts"][0]["input_tokens"] for sample in samples(tmp_path, "two")]
    assert sum(two) - 2 * (read[0] - kept[0]) == 2 * 40


@pytest.mark.slow
def test_unsupported_tasks_are_refused_by_name(pictures: list[Path], tmp_path: Path) -> None:
    document = {"media": [str(pictures[0])], "prompt": "is there a star?", "answer": "yes"}
    task(tmp_path, "choices", [document], output="multiple_choice")
    ran = evaluate(tmp_path, "choices", "pretrained=demo", "--batch_size", "1")
    assert "choices asks how likely given answers are, which --model prunesid does not answer; take a" in ran.stderr


# The tests below run the model class in this process.


def model_of(**arguments: Any) -> Any:
    from prunesid_cli.integrations.lmms_eval.model import PruneSID

    return PruneSID(**{"pretrained": "demo", "keep": 64, **arguments})


def generated(model: Any, documents: list[Document], settings: Document, times: int = 1) -> list[str]:
    """Answers to documents, each asked `times` times, as lmms-eval does."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"made": {"test": documents}}
    requests = [
        Instance(
            "generate_until",
            (document["prompt"], settings, lambda document: document["media"], number, "made", "test"),
            0,
            {"task": "made", "doc_id": number, "repeats": times},
        )
        for number, document in enumerate(documents)
    ]
    repeated = [request for request in requests for _ in range(times)]
    return [result.text for result in model.generate_until(repeated)]


def test_a_picture_is_encoded_once(questions: list[Document]) -> None:
    """As long as the cache has room for it; without room, only time is lost."""
    documents = [{**question, "media": [Image.open(question["media"][0])]} for question in questions]
    model, forgetful = model_of(batch_size="4"), model_of(batch_size="4")
    forgetful.vision_cache.token_sets.max_bytes = 1
    texts = generated(model, documents, {"max_new_tokens": 8})
    assert generated(forgetful, documents, {"max_new_tokens": 8}) == texts
    assert (model.vision_cache.num_encoded, forgetful.vision_cache.num_encoded) == (5, 15)


@pytest.mark.parametrize(
    ("settings", "answers", "words"),
    [
        ({"max_new_tokens": 2}, 1, 2),
        ({"max_new_tokens": 20, "until": [" "]}, 1, 1),
        ({"max_new_tokens": 20, "temperature": 9.0}, 3, None),
        ({"max_new_tokens": 20, "temperature": 9.0, "do_sample": False, "top_p": 0.5}, 1, None),
    ],
)
def test_generation_settings_of_a_task(
    questions: list[Document], settings: Document, answers: int, words: int | None
) -> None:
    """Several sampled answers to one question all differ; the settings are not changed."""
    before = dict(settings)
    texts = generated(model_of(), [{**questions[0], "prompt": "what is shown?"}], settings, times=3)
    assert (len(texts), len(set(texts))) == (3, answers)
    assert words is None or len(texts[0].split()) == words
    assert settings == before


def test_a_sampled_answer_does_not_depend_on_other_questions(questions: list[Document]) -> None:
    settings, documents = {"max_new_tokens": 8, "temperature": 9.0}, questions[:3]
    alone = [generated(model_of(), [document], settings)[0] for document in documents]
    assert generated(model_of(batch_size="4"), documents, settings) == alone


def test_transparency_is_composited_and_a_surplus_mention_is_removed(
    run: Run, questions: list[Document], tmp_path: Path
) -> None:
    picture = Image.open(questions[0]["media"][0]).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / "a.png")
    document = {"media": [[picture]], "prompt": "what <image> is <image> shown?"}
    texts = generated(model_of(), [document], {"max_new_tokens": 12})
    assert texts == ask(run, "demo", [{"media": [tmp_path / "a.png"], "prompt": "what  is  shown?"}], "-k", "64")


@pytest.mark.parametrize(
    ("media", "settings", "message"),
    [
        ([], {}, "made, document 0: a prompt without a picture; choose only tasks"),
        ([{"array": []}], {}, "made, document 0: neither a picture nor a file: dict"),
        (["gone.png"], {}, "gone.png: no such file"),
        (["gone.png"], {"num_beams": 5}, "made wants a beam search, which is not supported; --gen_kwargs num_beams=1"),
        (["gone.png"], {"temperature": 1, "top_p": 0.9}, "made samples by top_p or top_k"),
    ],
)
def test_a_request_that_cannot_be_answered_ends_the_run(media: list[Any], settings: Document, message: str) -> None:
    """A score over the other documents would be misleading."""
    with pytest.raises(PruneSIDError, match=message):
        generated(model_of(), [{"media": media, "prompt": "what is shown?"}], settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": None}, "no model is named; pretrained=llava-hf/llava-1.5-7b-hf"),
        ({"kep": 64}, "no model argument 'kep'; one of: pretrained, revision, keep"),
        ({"keep": 0.11}, "cannot read '0.11' as a budget; did you mean 11%"),
        ({"dynamic": "maybe"}, "dynamic=maybe is neither true nor false"),
        ({"method": "best"}, "no selection method called 'best'"),
        ({"frames": 8, "fps": 1}, "frames and fps contradict each other"),
        ({"frames": 0}, "frames=0 is not a number of frames"),
        ({"fps": "x"}, "fps=x is not a rate"),
        ({"dtype": "fp8"}, "dtype=fp8 is unknown; one of: auto, bf16"),
        ({"attn": "paged"}, "attn=paged is unknown"),
        ({"fit": "squash"}, "fit=squash is unknown; one of: crop, pad"),
        ({"allow_special_tokens": "some"}, "allow_special_tokens=some is neither true nor false"),
        ({"batch_size": "many"}, "--batch_size many is not a number"),
        ({"trust_remote_code": True}, "needs code of its own; leave out trust_remote_code"),
    ],
)
def test_arguments_are_checked_before_weights_are_read(arguments: Document, message: str) -> None:
    with pytest.raises(PruneSIDError, match=message):
        model_of(**{"pretrained": "nowhere/nothing", **arguments})
