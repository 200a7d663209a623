"""The ask command: answers, records, several images in one prompt, sampling."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import PROMPT, Run


@pytest.mark.parametrize("keep", ["64", "11%", "all", "3"])
def test_ask_is_compress_then_answer(run: Run, llava: Path, pictures: list[Path], tmp_path: Path, keep: str) -> None:
    paths = pictures[:4]
    asked = [run("ask", "-m", llava, "-k", keep, path, PROMPT).out.strip() for path in paths]
    assert run("compress", *paths, "--out", tmp_path / "c", "-m", llava, "-k", keep).code == 0
    answered = run("answer", tmp_path / "c", PROMPT)
    assert answered.code == 0
    assert [record["answer"] for record in answered.records] == asked
    assert len(set(asked)) > 1, "the tiny model gives one answer for all images, so the comparison shows nothing"


def test_several_pictures_in_one_prompt(run: Run, llava: Path, pictures: list[Path]) -> None:
    result = run("ask", "-m", llava, *pictures[:3], "what differs?", "--json", "-k", "40")
    assert result.code == 0
    (record,) = result.records
    assert (record["kept"], record["tokens"], len(record["sources"])) == (120, 3 * 576, 3)


def test_each_picture_is_asked_alone(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """In a folder, by a glob, and from a list on stdin; a file that cannot be read has errors, and no answers."""
    for picture in pictures[:3]:
        shutil.copy(picture, tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no image")
    names = [tmp_path / "bad.png", *(tmp_path / picture.name for picture in pictures[:3])]
    alone = [run("ask", picture, PROMPT).out.strip() for picture in pictures[:3]]
    asked = run("ask", tmp_path, "--each", "-p", PROMPT, "-p", "is there a star?", "-u")
    assert asked.code == 3
    assert [(record["sources"], record["prompt"]) for record in asked.records] == [
        ([str(name)], prompt) for name in names for prompt in (PROMPT, "is there a star?")
    ]
    assert [record.get("answer") for record in asked.records[::2]] == [None, *alone]
    assert asked.records[0]["error"] in asked.err
    assert f"visual tokens {6 * 576} -> {6 * 63} " in asked.err
    some = run("ask", tmp_path, PROMPT, "--each", "--exclude", "bad.png", "--limit", 2)
    assert [record["answer"] for record in some.records] == alone[:2]
    by_glob = run("ask", tmp_path / "*.png", PROMPT, "--each")
    by_list = run("ask", "-", PROMPT, "--each", stdin="".join(f"{name}\n" for name in names).encode())
    for ran in (by_glob, by_list):
        assert (ran.code, [record.get("answer") for record in ran.records]) == (3, [None, *alone])


def test_several_prompts_are_answered_as_if_alone(run: Run, pictures: list[Path]) -> None:
    prompts = (PROMPT, "is there a star?")
    asked = run("ask", *pictures[:2], *(word for prompt in prompts for word in ("-p", prompt)), "--image", pictures[2])
    alone = [run("ask", *pictures[:3], prompt) for prompt in prompts]
    assert [record["answer"] for record in asked.records] == [ran.out.strip() for ran in alone]
    assert "one prompt about 3 images or clips together; --each asks" in alone[0].err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{0}",), "no prompt is given"),
        (("{0}", "{1}"), "no prompt is given"),
        (("{0}", "{1}", "--each"), "no prompt is given"),
        (("--image", "{0}"), "needs an image and a prompt"),
        (("-p", "what?"), "needs an image and a prompt"),
        (("what?",), "needs an image and a prompt"),
        (("what?", "{0}"), "the prompt comes last"),
        (("-", "-"), "stdin can be read only once"),
        (("{0}", "-p", "what?", "--each", "--compare"), "--compare takes one prompt"),
        (("{0}", "what?", "--choices", "yes"), "fewer than two choices"),
        (("{0}", "what?", "--limit", "2"), "add --each"),
    ],
)
def test_arguments_that_cannot_be_meant(words: tuple[str, ...], message: str, run: Run, pictures: list[Path]) -> None:
    ran = run("ask", *(word.format(*pictures) for word in words))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_choices_have_probabilities(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    choices = ("yes", "no", "a red square")
    asked = run("ask", pictures[0], "is there a star?", "--choices", ",".join(choices), "--json").records[0]
    assert tuple(asked["p"]) == choices
    assert sum(asked["p"].values()) == pytest.approx(1, abs=1e-5)
    assert asked["answer"] == max(asked["p"], key=asked["p"].get)
    (tmp_path / "choices.txt").write_text("\n".join(choices) + "\n")
    plain = run("ask", pictures[0], "is there a star?", "--choices", tmp_path / "choices.txt")
    assert (plain.code, plain.out.strip()) == (0, asked["answer"])


def test_an_answer_by_a_schema_is_json(run: Run, pictures: list[Path]) -> None:
    ask = (
        "ask",
        pictures[0],
        PROMPT,
        "--schema",
        '{"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 3}',
    )
    plain, record = run(*ask), run(*ask, "--json").records[0]
    assert plain.code == 0, plain.err
    assert json.loads(plain.out) == record["answer"]
    assert len(record["answer"]) >= 2


def test_tags_place_images_in_a_prompt(run: Run, llava: Path, pictures: list[Path]) -> None:
    """An <image> tag stands for one image. LLaVA-1.5 puts images first anyway, so here the tags change nothing."""
    plain = run("ask", "-m", llava, *pictures[:2], "and what?", "--json").records[0]
    placed = run("ask", "-m", llava, *pictures[:2], "<image>and <image>what?", "--json").records[0]
    assert (placed["answer"], placed["prompt_tokens"]) == (plain["answer"], plain["prompt_tokens"])
    wrong = run("ask", "-m", llava, *pictures[:2], "what is <image> about?")
    assert (wrong.code, "there are 2" in wrong.err, "<image>" in wrong.err) == (2, True, True)
    nothing = run("ask", "-m", llava, pictures[0], " <image> ")
    assert (nothing.code, "asks nothing" in nothing.err) == (2, True)


def test_a_json_record_holds_settings_and_times(run: Run, llava: Path, pictures: list[Path]) -> None:
    """It also says whether --max-new-tokens cut the answer."""
    ask = ("ask", "-m", llava, pictures[0], PROMPT, "--json", "--method", "grid", "-k", 40, "-u")
    result = run(*ask, "--max-new-tokens", 3)
    (record,) = result.records
    assert (record["method"], record["keep"], record["new_tokens"], record["cut"]) == ("grid", "40", 3, True)
    for stage in ("preprocess", "encode", "select", "generate"):
        assert float(re.findall(rf"{stage} (\d+) ms", result.err)[0]) == pytest.approx(record[f"{stage}_ms"], abs=0.6)
    uncut = run("ask", pictures[0], PROMPT, "--json").records[0]
    assert (uncut["method"], uncut["keep"], uncut["cut"]) == ("prunesid", "11%", False)
    length = uncut["new_tokens"]
    for limit in (length, length + 1):  # the end token counts, too
        same = run("ask", pictures[0], PROMPT, "--json", "--max-new-tokens", limit).records[0]
        assert (same["answer"], same["cut"]) == (uncut["answer"], limit == length)


def test_sampling_is_repeatable_and_leaves_the_global_generator_unchanged(
    run: Run, llava: Path, pictures: list[Path]
) -> None:
    import torch

    before = torch.random.get_rng_state()
    answers = {
        run("ask", "-m", llava, pictures[0], PROMPT, "--temperature", "3", "--seed", seed).out for seed in (1, 1, 2, 3)
    }
    assert 1 < len(answers) <= 3
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_budget_above_the_token_count_keeps_all_and_warns(run: Run, llava: Path, pictures: list[Path]) -> None:
    result = run("ask", "-m", llava, "-k", "900", pictures[0], PROMPT)
    assert "--keep 900 of 576 visual tokens: all are kept" in result.err
    assert result.out == run("ask", "-m", llava, "-k", "all", pictures[0], PROMPT).out


def test_usage_is_printed_to_stderr(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    result = run("ask", "-m", llava, pictures[0], PROMPT, "--usage")
    assert "visual tokens 576 -> 63 (10.9%)" in result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("visual tokens")]
    assert all(f"   {stage} " in line for stage in ("prompt", "encode", "select", "generate"))
    assert len(result.out.splitlines()) == 1
    result = run("compress", pictures[0], "-m", llava, "--out", tmp_path, "-u", "-q")
    assert all(f"{stage} " in result.err for stage in ("encode", "select"))


def test_special_tokens_are_text_unless_they_are_allowed(run: Run, pictures: list[Path]) -> None:
    """`</s>` ends no turn: it costs as many tokens as its letters do."""
    ask = ("ask", pictures[0], "--json", "--max-new-tokens", 1)
    lengths = {
        (prompt, *options): run(*ask, f"is it {prompt}?", *options).records[0]["prompt_tokens"]
        for prompt in ("", "</s>", "<pad>", "<x>")
        for options in ((), ("--allow-special-tokens",))
    }
    nothing = lengths["",]
    assert lengths["", "--allow-special-tokens"] == nothing
    for prompt in ("</s>", "<pad>"):
        assert lengths[prompt, "--allow-special-tokens"] == nothing + 1
        assert lengths[prompt,] > nothing + 1
    assert lengths["<x>",] == lengths["<x>", "--allow-special-tokens"]


def test_special_tokens_count_as_another_way_to_answer(
    run: Run, scenes: list[Path], scene_cache: Path, tmp_path: Path
) -> None:
    """Answers and evaluations with the option do not continue files of those without it."""
    answer = ("answer", scene_cache, "what is </s>?", "--out", tmp_path / "answers", "--max-new-tokens", 1)
    assert run(*answer).code == 0
    other = run(*answer, "--allow-special-tokens")
    assert (other.code, "special tokens" in other.err) == (2, True)
    assert run(*answer).code == 0
    (tmp_path / "data").write_text(json.dumps({"media": str(scenes[0]), "prompt": "what is </s>?", "answer": "a"}))
    evaluate = ("evaluate", tmp_path / "data", "-k", "8", "--max-new-tokens", 1, "--out", tmp_path / "evaluated")
    assert run(*evaluate).code == 0
    size = (tmp_path / "evaluated").stat().st_size
    assert (run(*evaluate).code, (tmp_path / "evaluated").stat().st_size) == (0, size)
    run(*evaluate, "--allow-special-tokens")
    assert (tmp_path / "evaluated").stat().st_size > size
