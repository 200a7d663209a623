"""The answer command: which items are asked which prompts, and in what order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.answer import SORTED_BATCHES, answer
from prunesid_cli.pipeline.prompt_file import ItemFilter, Prompt, Prompts
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.tokencache import open_cache
from prunesid_cli.types import Generation
from tests.caches import write_shard
from tests.cli.conftest import QUESTIONS, SHORT
from tests.cli.helpers import printed_answers, stored_answers, write_jsonl
from tests.conftest import PROMPT, Run


def test_answer_reads_neither_pictures_nor_tower(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """The pictures are deleted, and the tower's layers are removed from the checkpoint."""
    from safetensors.torch import load_file, save_file

    folder, model = tmp_path / "pictures", tmp_path / "model"
    shutil.copytree(pictures[0].parent, folder)
    shutil.copytree(llava, model)
    run("compress", folder, "--out", tmp_path / "c", "-m", model)
    expected = run("answer", tmp_path / "c", PROMPT)
    shutil.rmtree(folder)
    weights = load_file(model / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "vision_tower" not in k or "embeddings" in k or "norm" in k}
    kept = {k: v for k, v in kept.items() if ".layers." not in k or "language_model" in k}
    assert len(kept) < len(weights)
    save_file(kept, model / "model.safetensors", {"format": "pt"})
    cache = with_revision_of(tmp_path / "c", model)
    assert [r["answer"] for r in run("answer", cache, PROMPT).records] == [r["answer"] for r in expected.records]


def with_revision_of(cache: Path, model: Path) -> Path:
    """A copy of the cache that names the checkpoint's present revision."""
    from dataclasses import replace

    from prunesid_cli.models.loading.checkpoint import fingerprint
    from prunesid_cli.tokencache import Entry, read_tokens

    shard = next(open_cache(cache).items())[0]
    sets = read_tokens(shard, shard.items)
    entries = [Entry(provenance=i.provenance, tokens=t, phi=i.phi) for i, t in zip(shard.items, sets, strict=True)]
    other = cache.with_name("again")
    other.mkdir()
    run = replace(shard.run, revision=fingerprint(model))
    write_shard(other, shard.number, run, shard.tool, entries)
    return other


def test_prompts_from_a_file(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    run("compress", *pictures[:3], "--out", tmp_path / "c", "-m", llava)
    prompts = tmp_path / "prompts.jsonl"
    records = [{"prompt": PROMPT}, {"prompt": "is there a star?", "source": str(pictures[1])}]
    prompts.write_text("\n".join(map(json.dumps, records)))
    result = run("answer", tmp_path / "c", "--prompts", prompts)
    assert [(r["id"], r["source"], r["prompt"]) for r in result.records] == [
        (0, str(pictures[0]), PROMPT),
        (1, str(pictures[1]), PROMPT),
        (2, str(pictures[1]), "is there a star?"),
        (3, str(pictures[2]), PROMPT),
    ]
    assert {"answer", "tokens", "kept", "ms"} <= set(result.records[0])
    prompts.write_text("not json")
    assert run("answer", tmp_path / "c", "--prompts", prompts).code == 2
    prompts.write_text('{"prompt": "x", "source": "nowhere"}')
    assert run("answer", tmp_path / "c", "--prompts", prompts).code == 2


def test_answers_come_item_by_item_for_any_batch_size(
    run: Run, scene_cache: Path, scenes: list[Path], prompts_file: Path
) -> None:
    """There are more queries than the smallest batches sort at once. Each answer is that of its prompt alone."""
    many = [{"prompt": f"{text} {number}"} for number in range(3) for text in QUESTIONS]
    write_jsonl(prompts_file, *many)
    runs = [run("answer", scene_cache, "--prompts", prompts_file, *SHORT, "--batch-size", size) for size in (1, 3, 8)]
    asked = [(r["id"], r["source"], r["prompt"]) for r in runs[0].records]
    pairs = [(str(path), record["prompt"]) for path in scenes for record in many]
    assert asked == [(number, *pair) for number, pair in enumerate(pairs)]
    assert len(pairs) > SORTED_BATCHES
    assert printed_answers(runs[0]) == printed_answers(runs[1]) == printed_answers(runs[2])
    for text in QUESTIONS[1:]:
        alone = {r["source"]: r["answer"] for r in run("answer", scene_cache, f"{text} 2", *SHORT).records}
        assert alone == {r["source"]: r["answer"] for r in runs[2].records if r["prompt"] == f"{text} 2"}


def test_sampling_does_not_depend_on_other_prompts(run: Run, scene_cache: Path, prompts_file: Path) -> None:
    common = ("answer", scene_cache, *SHORT, "--temperature", "2")
    many = run(*common, "--prompts", prompts_file).records
    alone = run(*common, QUESTIONS[1]).records
    assert [r["answer"] for r in many if r["prompt"] == QUESTIONS[1]] == [r["answer"] for r in alone]
    assert len({r["answer"] for r in many}) > 1


def sources(run: Run, scene_cache: Path, *args: object) -> list[str]:
    result = run("answer", scene_cache, "count", *SHORT, *args)
    return [Path(r["source"]).name for r in result.records]


def test_where_selects_items_by_pattern(run: Run, scene_cache: Path, scenes: list[Path]) -> None:
    assert sources(run, scene_cache, "--where", "scene[13].png") == ["scene1.png", "scene3.png"]
    assert sources(run, scene_cache, "--where", "*/b/*") == ["scene3.png", "scene4.png"]
    assert sources(run, scene_cache, "--where", "a/*", "--where", str(scenes[4])) == ["scene4.png"]
    for nothing in ("*.jpg", "b/scene3.png"):
        result = run("answer", scene_cache, "count", "--where", nothing)
        assert (result.code, result.out, "no item" in result.err) == (2, "", True)


def test_prompts_name_their_items(run: Run, scene_cache: Path, scenes: list[Path], prompts_file: Path) -> None:
    digest = next(item.digest for _, item in open_cache(scene_cache).items() if item.source == str(scenes[2]))
    write_jsonl(
        prompts_file,
        {"prompt": "first", "where": "*/b/*"},
        {"prompt": "all"},
        {"prompt": "second", "digest": digest[:8].upper()},
        {"prompt": "third", "source": str(scenes[3])},
        {"prompt": "first", "source": str(scenes[3])},
    )
    asked = [
        (Path(r["source"]).name, r["prompt"])
        for r in run("answer", scene_cache, "--prompts", prompts_file, *SHORT).records
    ]
    assert asked == [
        ("scene0.png", "all"),
        ("scene1.png", "all"),
        ("scene2.png", "all"),
        ("scene2.png", "second"),
        ("scene3.png", "first"),  # once, although two lines select it
        ("scene3.png", "all"),
        ("scene3.png", "third"),
        ("scene4.png", "first"),
        ("scene4.png", "all"),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ({"digest": "abc"}, "at least 8"),
        ({"digest": "no digest!"}, "at least 8"),
        ({"were": "*.jpg"}, "nearly 'where'"),
        ({"where": "*", "source": "scene1.png"}, "by source and by where"),
    ],
)
def test_mistakes_in_a_prompt_file_are_found_before_a_model_is_loaded(
    run: Run, scene_cache: Path, prompts_file: Path, name: dict, words: str
) -> None:
    write_jsonl(prompts_file, {"prompt": "count"} | name)
    result = run("answer", scene_cache, "--prompts", prompts_file, "-m", "nowhere/at-all")
    assert (result.code, result.out, words in result.err, "line 1" in result.err) == (2, "", True, True), result.err


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": null}',
        '{"prompt": " "}',
        '{"prompt": 3}',
        '{"prompt": "x", "source": ["y"]}',
        '{"prompt": "<image>"}',
        '{"prompt": "x", "were": "*.png"}',
        '{"prompt": "half of a pair: \\ud83d"}',
        '{"prompt": "x", "source": "\\ud83d"}',
        '{"prompt": "caf\udce9"}',
        "nonsense",
    ],
)
@pytest.mark.parametrize("to_file", [False, True])
def test_a_bad_line_is_named_and_skipped(run: Run, scene_cache: Path, tmp_path: Path, line: str, to_file: bool) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "answers.jsonl"
    lines = [json.dumps({"prompt": PROMPT}), line, json.dumps({"prompt": "count"})]
    prompts.write_bytes("\r\n".join(lines).encode("utf-8", "surrogateescape"))
    result = run("answer", scene_cache, "--prompts", prompts, *SHORT, *(("--out", out) if to_file else ()))
    assert (result.code, f"error: {prompts}, line 2" in result.err) == (3, True), result.err
    records = stored_answers(out) if to_file else result.records
    assert [record["prompt"] for record in records] == [PROMPT, "count"] * 5
    assert [record["id"] for record in records] == list(range(10))
    prompts.write_bytes(line.encode("utf-8", "surrogateescape"))
    alone = run("answer", scene_cache, "--prompts", prompts)
    assert (alone.code, alone.out, f"{prompts}, line 1" in alone.err) == (2, "", True), alone.err


def test_a_bad_line_removes_no_answers(run: Run, scene_cache: Path, prompts_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    command = ("answer", scene_cache, "--prompts", prompts_file, *SHORT, "--out", out)
    run(*command)
    before = out.read_bytes()
    prompts_file.write_text(prompts_file.read_text().replace("{", "", 1))
    result = run(*command, "--forget")
    assert (result.code, "--forget needs" in result.err, out.read_bytes() == before) == (2, True, True), result.err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_another_encoding_is_named(run: Run, scene_cache: Path, tmp_path: Path, encoding: str) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_bytes('{"prompt": "what is shown?"}\r\n'.encode(encoding))
    name = encoding[:6].upper()
    for command, data in (
        (("answer", scene_cache, "--prompts", prompts), b""),
        (("answer", scene_cache, "-"), "what is shown?".encode(encoding)),
        (("evaluate", prompts), b""),
    ):
        result = run(*command, stdin=data)
        assert (result.code, f"is {name}, not UTF-8\nhint: " in result.err) == (2, True), result.err


def test_an_exact_name_wins_over_a_glob(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for picture, name in zip(pictures, ("photo [1].png", "photo 1.png", "b[12].png", "b1.png"), strict=False):
        shutil.copy(picture, folder / name)
    run("compress", folder, "-m", llava, "--out", tmp_path / "c")
    for pattern, expected in {
        "photo [1].png": ["photo [1].png"],
        f"{folder}/photo [1].png": ["photo [1].png"],
        "b[12].png": ["b[12].png"],
        "b[13].png": ["b1.png"],
        "photo*": ["photo 1.png", "photo [1].png"],
    }.items():
        assert sources(run, tmp_path / "c", "--where", pattern) == expected
        prompts = write_jsonl(tmp_path / "p.jsonl", {"prompt": "count", "where": pattern})
        asked = run("answer", tmp_path / "c", "--prompts", prompts, *SHORT)
        assert [Path(record["source"]).name for record in asked.records] == expected


@pytest.mark.parametrize("name", ["photo [1].png", "a.png"])
def test_a_path_wins_over_the_name_of_a_file_elsewhere(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for picture, path in zip(pictures, (name, f"sub/{name}"), strict=False):
        shutil.copy(picture, path)
    run("compress", name, "sub", "-m", llava, "--out", "c")
    prompts = write_jsonl(Path("p.jsonl"), {"prompt": "count", "where": name})
    for args, expected in (
        (("count", "--where", name), [name]),
        (("--prompts", prompts), [name]),
        (("count", "--where", f"sub/{name}"), [f"sub/{name}"]),
        (("count", "--where", "./*.png"), [name, f"sub/{name}"]),
    ):
        asked = run("answer", "c", *args, *SHORT)
        assert [record["source"] for record in asked.records] == expected, asked.err


def test_prompts_keep_their_characters(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompt = "what\u2028is \u0085shown?"
    prompts.write_text("\ufeff" + json.dumps({"prompt": prompt}, ensure_ascii=False), encoding="utf-8")
    result = run("answer", scene_cache, "--prompts", prompts, *SHORT)
    assert [record["prompt"] for record in result.records] == [prompt] * 5


def test_a_prompt_without_an_item_is_reported_and_skipped(
    run: Run, llava: Path, scene_cache: Path, prompts_file: Path, tmp_path: Path
) -> None:
    bad, cache = tmp_path / "bad.png", tmp_path / "own"
    bad.write_text("no picture")
    shutil.copytree(scene_cache, cache)
    assert run("compress", bad, "-m", llava, "--out", cache).code == 3
    names = [{"source": str(bad)}, {"digest": "0" * 12}, {"where": "*.jpg"}, {"source": "nowhere.png"}]
    write_jsonl(prompts_file, {"prompt": "count"})
    expected = printed_answers(run("answer", cache, "--prompts", prompts_file, *SHORT))
    write_jsonl(prompts_file, *({"prompt": "count"} | name for name in names), {"prompt": "count"})
    result = run("answer", cache, "--prompts", prompts_file, *SHORT)
    assert (result.code, printed_answers(result)) == (3, expected)
    for number, words in enumerate((f"{bad}, which failed: ", "with digest 0", "that *.jpg matches", "nowhere.png"), 1):
        assert f"{prompts_file}, line {number}: the cache has no item {words}" in result.err
    write_jsonl(prompts_file, *({"prompt": "count"} | name for name in names))
    result = run("answer", cache, "--prompts", prompts_file, "-m", "nowhere/at-all")
    assert (result.code, result.out, "no item of" in result.err) == (2, "", True), result.err


def test_queries_are_read_only_as_they_are_needed(llava: Path, scene_cache: Path) -> None:
    checkpoint = resolve(str(llava))
    placement = choose_placement("cpu", "auto", "auto", load_config(checkpoint))
    language = load_family("llava").load_language_half(checkpoint, placement)
    num_read = 0

    def endless() -> Iterator:
        nonlocal num_read
        while True:
            for query in Prompts([Prompt("count")]).queries(open_cache(scene_cache), ItemFilter()):
                num_read += 1
                yield query

    replies = answer(language, endless(), Generation(max_new_tokens=1), BatchSizeTuner.fixed(2))
    assert sum(len(next(replies)) for _ in range(3)) <= num_read <= 2 * SORTED_BATCHES


PROMPT_FILES = {
    "prompts.jsonl": '{"prompt": "what is shown?", "id": "a", "tags": [1, null]}\n'
    '{"prompt": "what is shown?", "id": "b"}\n{"id": 7, "prompt": "is there a star?", "where": "scene0*"}\n',
    "prompts.csv": 'id,prompt,where,note\r\na,what is shown?,,\r\nb,what is shown?,,"two\nlines, and a comma"\r\n'
    "7,is there a star?,scene0*,ö\r\n",
    "prompts.txt": "what is shown?\n\n  is there a star?  \r\n",
}


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_prompts_may_be_lines_a_table_or_json(name: str, run: Run, scene_cache: Path, tmp_path: Path) -> None:
    """Fields of the user's own are copied to the answers. Two prompts that differ in them alone are two prompts."""
    (tmp_path / name).write_text(PROMPT_FILES[name], newline="")
    result = run("answer", scene_cache, "--prompts", tmp_path / name)
    assert result.code == 0, result.err
    first = [record for record in result.records if record["source"] == result.records[0]["source"]]
    if name == "prompts.txt":
        assert [record["prompt"] for record in first] == ["what is shown?", "is there a star?"]
        by_stdin = run("answer", scene_cache, "--prompts", "-", stdin=PROMPT_FILES[name].encode())
        typed = run("answer", scene_cache, "what is shown?", "-p", "is there a star?")
        for other in (by_stdin, typed):
            assert [record | {"ms": 0} for record in other.records] == [record | {"ms": 0} for record in result.records]
        return
    assert [record["id"] for record in first] == ["a", "b", 7 if name == "prompts.jsonl" else "7"]
    assert first[0]["answer"] == first[1]["answer"]
    assert first[0]["tags"] == [1, None] if name == "prompts.jsonl" else first[1]["note"] == "two\nlines, and a comma"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text\nwhat?\n", "no column 'prompt'"),
        ("a.csv", "prompt,id\nwhat?\n", "line 2 has another number of columns"),
        ("a.csv", "prompt,id\n,1\n", "line 2 has an empty prompt"),
        ("a.csv", "prompt\n", "has no prompt"),
        ("a.csv", 'prompt\n"what?\n', "line 2"),
        ("a.jsonl", '{"prompt": "what?", "sources": "a.png"}', "nearly 'source'"),
        ("a.jsonl", '{"prompt": "what?", "answer": "yes"}', "a field 'answer', which answers have, too"),
        ("a.txt", "\n\n", "has no prompt"),
    ],
)
def test_prompt_files_that_cannot_be_meant(
    name: str, text: str, message: str, run: Run, scene_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    ran = run("answer", scene_cache, "--prompts", tmp_path / name)
    if 'prompt\n"what?' in text:  # a quote that is not closed is a text with a line break
        assert ran.code == 0
        return
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_choices_are_those_of_ask(run: Run, llava: Path, scene_cache: Path, scenes: list[Path]) -> None:
    """For several prompts about an item, whose common beginning is read once."""
    choices = ("--choices", "yes,no,a red square")
    prompts = [word for text in ("is there a star?", "what is shown?") for word in ("-p", text)]
    answered = run("answer", scene_cache, *prompts, *choices)
    assert answered.code == 0, answered.err
    asked = run("ask", "-m", llava, *scenes[:2], "--each", *prompts, *choices)
    assert len(asked.records) == 4
    for one, other in zip(asked.records, answered.records, strict=False):
        assert (one["sources"], one["prompt"], one["answer"]) == ([other["source"]], other["prompt"], other["answer"])
        assert one["p"] == pytest.approx(other["p"], abs=1e-5)
    assert len({tuple(record["p"].values()) for record in answered.records}) == 10


def test_a_system_prompt_counts_as_another_way_to_answer(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    command = ("answer", scene_cache, PROMPT, "--out", tmp_path / "answers.jsonl")
    assert run(*command).code == 0
    for option, value in (("--system", "be brief"), ("--choices", "yes,no")):
        other = run(*command, option, value)
        assert (other.code, value.split(",")[0] in other.err) == (2, True)


def test_items_are_left_out_or_limited(run: Run, scene_cache: Path, scenes: list[Path]) -> None:
    for options, expected in (
        (("--include", "*/a/*"), scenes[:3]),
        (("--exclude", "*/a/*"), scenes[3:]),
        (("--where", "*/a/*", "--exclude", "scene1.png", "--limit", 1), scenes[:1]),
        (("--limit", 4), scenes[:4]),
    ):
        asked = run("answer", scene_cache, PROMPT, *SHORT, *options)
        assert [record["source"] for record in asked.records] == list(map(str, expected))
    assert run("answer", scene_cache, PROMPT, "--exclude", "*").code == 2


def test_a_dry_run_counts_what_is_left(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    command = ("answer", scene_cache, "-p", PROMPT, "-p", "count", *SHORT, "--out", out)
    plan = run(*command, "--dry-run", "--json").records[0]
    assert (plan["new"], plan["answered"], out.exists()) == (10, 0, False)
    assert run("answer", scene_cache, PROMPT, *SHORT, "--out", out).code == 0
    before = out.read_bytes()
    plan = run(*command, "--dry-run", "--json").records[0]
    assert (plan["new"], plan["answered"], out.read_bytes()) == (5, 5, before)
    assert plan["answers_per_s"] > 0
    assert "would answer 5 prompts" in run(*command, "--dry-run").out


def test_answers_by_a_schema_are_values(run: Run, scene_cache: Path, tmp_path: Path) -> None:
    """In records and files. One that is cut is an error, and is asked again."""
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["color", "count"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    out = tmp_path / "answers.jsonl"
    command = ("answer", scene_cache, PROMPT, "--schema", tmp_path / "schema.json", "--max-new-tokens", 64)
    asked = run(*command)
    assert asked.code == 0, asked.err
    assert all(record["answer"]["color"] in ("red", "green") for record in asked.records)
    assert run(*command, "--out", out).code == 0
    stored = [json.loads(line)["answer"] for line in out.read_text().splitlines()]
    assert stored == [record["answer"] for record in asked.records]
    assert "were there" in run(*command, "--out", out).err
    cut = run("answer", scene_cache, PROMPT, "--schema", json.dumps(schema), "--max-new-tokens", 3)
    assert (cut.code, {"answer" in record for record in cut.records}) == (3, {False})
    assert "more tokens: --max-new-tokens 6" in cut.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--schema", '{"type": "thing"}'), "Invalid type: thing"),
        (("--schema", "{"), "is not JSON"),
        (("--schema", "nowhere.json"), "cannot read nowhere.json"),
        (("--schema", "{}", "--choices", "yes,no"), "contradict each other"),
        (("--out", "answers.json"), ".jsonl or .csv"),
    ],
)
def test_options_that_cannot_be_meant(options: tuple[str, ...], message: str, run: Run, scene_cache: Path) -> None:
    ran = run("answer", scene_cache, PROMPT, *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
