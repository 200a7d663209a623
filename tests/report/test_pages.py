"""Pages for a browser: their data are those of the evaluation or the cache, and they work in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunesid_cli.tokencache import open_cache
from prunesid_cli.types import Layout, Region
from prunesid_cli.visualization.patches import read_regions, to_patch_record
from tests.conftest import PROMPT, Run, run_command
from tests.films import film
from tests.models.tiny import write_checkpoint

QUESTIONS = (
    {"prompt": "how many shapes are there?", "answer": "9", "kind": "count"},
    {"prompt": "what is shown?", "answer": "</script><b>", "kind": "text"},
)


def page_data(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def kept_numbers(patches: dict[str, Any]) -> set[int]:
    bits = "".join(f"{int(digit, 16):04b}" for digit in patches["kept"])
    return {number for number, bit in enumerate(bits) if bit == "1"}


def picture(panel: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(panel["image"].partition(",")[2])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> Path:
    """An evaluation of the embedded model: `answers.jsonl`, `page.html`, and the pictures."""
    folder = tmp_path_factory.mktemp("page")
    for path in pictures[:6]:
        shutil.copy(path, folder)
    lines = [{"media": path.name, **question} for path in pictures[:6] for question in QUESTIONS]
    lines.append({"media": [pictures[0].name, pictures[1].name], "prompt": "how many shapes are there?", "kind": "two"})
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        from tests.conftest import isolate

        isolate(patch, folder / "config")
        ran = run_command(
            "evaluate", folder / "q.jsonl", "--keep", "all,64,4", "--method", "prunesid,random",
            "--out", folder / "answers.jsonl", "--report", folder / "page.html",
        )  # fmt: skip
    assert ran.code == 0, ran.err
    return folder


def test_the_page_of_an_evaluation_has_its_records(folder: Path) -> None:
    data = page_data(folder / "page.html")
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [setting["name"] for setting in data["settings"]] == ["all", "64 prunesid", "4 prunesid", "64 random",
                                                                 "4 random"]  # fmt: skip
    assert len(data["records"]) == 13 and len(data["media"]) == 6
    for line in lines:
        (record,) = [r for r in data["records"] if r["line"] == line["line"]]
        answer = record["answers"][line["setting"]]
        assert (answer["text"], answer["kept"], answer["score"]) == (line["answer"], line["kept"], line["score"])
        unpruned = record["answers"]["all"]["text"]
        assert answer["changed"] == (sorted(answer["text"].split()) != sorted(unpruned.split())) or answer["text"]
        for patches in answer["patches"]:
            if line["setting"] != "all":
                assert line["kept"] // len(answer["patches"]) - 1 <= len(kept_numbers(patches)) <= line["kept"]
            assert ("groups" in patches) == ("prunesid" in line["setting"])
    panel = data["media"]["scene0.png"][0]
    assert picture(panel).size == tuple(panel["size"]) == Image.open(folder / "scene0.png").size
    text = (folder / "page.html").read_text()
    assert "</script><b>" not in text and not re.search(r'(src|href)="(?!data:)', text) and "http:" not in text.replace(
        "http://www.w3.org/2000/svg", "")  # fmt: skip


def test_the_page_says_what_is_not_counted(run: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "scene0.png", tmp_path)
    lines = [json.dumps({"media": name, "prompt": "what is shown?"}) for name in ("scene0.png", "gone.png")]
    (tmp_path / "q.jsonl").write_text("\n".join([*lines, "no JSON"]))
    page = tmp_path / "page.html"
    ran = run("evaluate", tmp_path / "q.jsonl", "--keep", "all,64", "--max-new-tokens", 2, "--report", page)
    assert ran.code == 3
    assert "q.jsonl, line 3 is not JSON" in page.read_text()
    assert "Not counted, because of errors: 2 records. The first error: " in page.read_text()
    assert "Not counted" not in (folder / "page.html").read_text()


def test_a_page_is_made_of_the_answers_alone(run: Run, folder: Path, tmp_path: Path) -> None:
    """The same page as of the run; without the pictures, it says which are missing."""
    ran = run("report", folder / "answers.jsonl", "--out", folder / "again.html")
    assert (ran.code, ran.out) == (0, f"{folder}/again.html\n"), ran.err
    assert page_data(folder / "again.html") == page_data(folder / "page.html")
    shutil.copy(folder / "answers.jsonl", tmp_path)
    assert run("report", tmp_path / "answers.jsonl", "--out", tmp_path / "page.html").code == 0
    assert "no such file" in page_data(tmp_path / "page.html")["media"]["scene0.png"][0]["error"]
    assert run("report", tmp_path / "answers.jsonl", "--out", tmp_path / "x.html", "--media-folder", folder).code == 0
    assert page_data(tmp_path / "x.html") == page_data(folder / "page.html")
    assert run("report", folder / "answers.jsonl", "--out", folder / "few.html", "--limit", 3).code == 0
    few = page_data(folder / "few.html")["records"]
    assert len(few) == 3 and "3 questions shown" in (folder / "few.html").read_text()


def test_what_is_no_source_or_page_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("<html>notes</html>")
    for args, code, words in (
        ((folder / "q.jsonl", "--out", tmp_path / "x.html"), 2, "holds no answers of evaluate"),
        ((folder / "nothing", "--out", tmp_path / "x.html"), 2, "holds no answers of evaluate"),
        ((folder, "--out", tmp_path / "x.html"), 1, "not a prunesid cache"),
        ((folder / "answers.jsonl", "--out", tmp_path / "notes.html"), 2, "is not a page of prunesid"),
        ((folder / "answers.jsonl", "--out", tmp_path / "a/b.html"), 2, "no such folder"),
        ((folder / "answers.jsonl", "--out", tmp_path / "x.html", "--include", "*"), 2, "are about the items"),
    ):
        result = run("report", *args)
        assert (result.code, words in result.err) == (code, True), result.err
    assert (tmp_path / "notes.html").read_text() == "<html>notes</html>"


def test_the_page_of_a_cache_shows_what_it_keeps(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    for path in pictures[:3]:
        shutil.copy(path, tmp_path)
    run("compress", tmp_path, "--out", tmp_path / "c", "--keep", "30")
    (tmp_path / "scene1.png").unlink()
    ran = run("report", tmp_path / "c", "--out", tmp_path / "page.html", "--exclude", "scene0.png")
    assert ran.code == 0, ran.err
    data = page_data(tmp_path / "page.html")
    assert [record["media"][0] for record in data["records"]] == [f"{tmp_path}/scene{n}.png" for n in (1, 2)]
    assert "no such file" in data["media"][f"{tmp_path}/scene1.png"][0]["error"]
    _, item = open_cache(tmp_path / "c").find(f"{tmp_path}/scene2.png") or pytest.fail("not there")
    answer = data["records"][1]["answers"]["kept"]
    assert kept_numbers(answer["patches"][0]) == {slot for slot in item.slots if slot >= 0}
    assert answer["kept"] == item.kept == 30


def test_clips_and_tiles_have_several_panels(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    model = write_checkpoint("llava_onevision", tmp_path / "model")
    clip = film(tmp_path / "clip.mp4")
    wide = tmp_path / "wide.png"
    Image.open(pictures[0]).resize((900, 500)).save(wide)
    run("compress", clip, wide, "-m", model, "--frames", 4, "--out", tmp_path / "c")
    assert run("report", tmp_path / "c", "--out", tmp_path / "page.html").code == 0
    data = page_data(tmp_path / "page.html")
    frames, tiles = data["media"][str(clip)], data["media"][str(wide)]
    assert [panel["time"] for panel in frames] == sorted(panel["time"] for panel in frames) and len(frames) == 4
    assert len(tiles) == 2 and all(panel["grids"] for panel in tiles)
    for name, panels in ((str(clip), frames), (str(wide), tiles)):
        (record,) = [r for r in data["records"] if r["media"] == [name]]
        total = sum(grid[0] * grid[1] for panel in panels for grid in panel["grids"])
        assert max(kept_numbers(record["answers"]["kept"]["patches"][0])) < total


def test_patch_records_hold_what_is_kept() -> None:
    regions = (Region(1, 2, 3, 4), Region(9, 1, 3, 3, (0.0, 0.5, 1.0, 1.0), 1.5))
    layout = Layout("<image>", (12,), regions)
    record = to_patch_record(layout, (-1, 1, 3, 7, 11), {1: 0, 2: 300})
    assert record["grids"] == [[2, 3, 0.0, 0.0, 1.0, 1.0, None], [1, 3, 0.0, 0.5, 1.0, 1.0, 1.5]]
    assert (record["kept"], kept_numbers(record)) == ("a48", {0, 2, 5, 8})
    assert record["groups"] == "00ff" + "ff" * 7
    assert list(read_regions(record)) == [Region(0, 2, 3, 3), Region(6, 1, 3, 3, (0.0, 0.5, 1.0, 1.0), 1.5)]
    assert "kept" not in to_patch_record(layout, None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, as the distribution has it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def choose(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const form = document.getElementById('controls'); form[arguments[0]].value = arguments[1];"
        "form.dispatchEvent(new Event('input'))", name, value,
    )  # fmt: skip


def shown_lines(browser: Any) -> list[int]:
    """Lines of the records on the page."""
    texts = browser.execute_script("return [...document.querySelectorAll('.expected')].map(e => e.textContent)")
    return [int(text.partition("line ")[2].split()[0]) for text in texts]


def test_a_browser_filters_sorts_and_toggles(browser: Any, folder: Path) -> None:
    browser.get(f"file://{folder}/page.html")
    data = page_data(folder / "page.html")

    def lines(setting: str, test: Any) -> set[int]:
        return {r["line"] for r in data["records"] if test(r["answers"]["all"], r["answers"][setting])}

    tests = {
        "changed": lambda all_, ours: ours["changed"],
        "wrong": lambda all_, ours: ours["score"] is not None and ours["score"] < 1,
        "lost": lambda all_, ours: ours["score"] is not None and all_["score"] > ours["score"],
        "gained": lambda all_, ours: ours["score"] is not None and all_["score"] < ours["score"],
    }
    for setting in ("64 prunesid", "4 random"):
        choose(browser, "setting", setting)
        for name, test in tests.items():
            choose(browser, "show", name)
            assert set(shown_lines(browser)) == lines(setting, test), (setting, name)
        choose(browser, "show", "all")
        assert len(shown_lines(browser)) == 13
        changed = lines(setting, tests["changed"])
        assert set(shown_lines(browser)[: len(changed)]) == changed
    choose(browser, "sort", "line")
    assert shown_lines(browser) == list(range(1, 14))
    choose(browser, "kind", "two")
    assert shown_lines(browser) == [13] and browser.find_element("id", "count").text == "1 of 13"
    assert len(browser.find_elements("css selector", "article img")) == 2
    choose(browser, "kind", "")
    choose(browser, "text", "SCENE3")
    assert shown_lines(browser) == [7, 8]
    choose(browser, "text", "")
    choose(browser, "setting", "64 prunesid")
    outlines, fills = [], []
    for view in ("kept", "groups", "picture"):
        browser.find_element("css selector", f"[value={view}]").click()
        svg = browser.execute_script("const s = document.querySelector('.frame svg'); return s ? s.innerHTML : ''")
        outlines.append(svg.count("outline"))
        fills.append(svg.count("fill-opacity"))
    assert outlines == [1, 1, 0] and fills[0] == 0 < fills[1]
    browser.find_element("css selector", "[value=kept]").click()
    button = browser.find_elements("css selector", ".answers button")[2]
    name = button.text
    button.click()
    assert browser.find_element("css selector", "[name=setting]").get_attribute("value") == name
    assert browser.get_log("browser") == []


def test_a_browser_follows_the_counts_of_the_table(browser: Any, folder: Path) -> None:
    """A count at the top shows as many questions, and a filter that matches nothing says so."""
    browser.get(f"file://{folder}/page.html")
    links = browser.find_elements("css selector", ".summary .link")
    assert links
    for link in links:
        link.click()
        assert len(shown_lines(browser)) == int(link.text), link.get_attribute("outerHTML")
    chosen = browser.find_element("css selector", "[name=setting]").get_attribute("value")
    assert chosen == links[-1].get_attribute("data-setting")
    assert "dark: dropped" in browser.find_element("id", "legend").text
    browser.find_element("css selector", "[value=groups]").click()
    assert browser.find_element("id", "legend").text.startswith("This setting has no groups.")
    choose(browser, "setting", "4 prunesid")
    assert "group of similar patches" in browser.find_element("id", "legend").text
    choose(browser, "text", "no question has these words")
    assert "No question matches" in browser.find_element("id", "records").text
    browser.find_element("css selector", ".empty button").click()
    assert len(shown_lines(browser)) == 13
    assert browser.get_log("browser") == []


def test_the_tables_are_those_of_the_evaluation(folder: Path) -> None:
    """The counts at the top are those of the answers; a few pictures are named as such; words are explained."""
    text = (folder / "page.html").read_text()
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    unpruned = {line["line"]: line for line in lines if line["setting"] == "all"}
    links = dict(re.findall(r'data-setting="(.*?)" data-show="lost">(\d+)', text))
    for setting in ("64 prunesid", "4 prunesid", "64 random", "4 random"):
        scored = [line for line in lines if line["setting"] == setting and line["score"] is not None]
        lost = sum(line["score"] < unpruned[line["line"]]["score"] for line in scored)
        assert int(links.get(setting, 0)) == lost
    changed = re.findall(r'data-setting="(.*?)" data-show="changed"', text)
    assert page_data(folder / "page.html")["first"] == next(iter(links or changed))
    for words in ("There are only 6 pictures", "What counts as right: the same words",
                  "keeps the same positions", "<th scope=\"col\">two (1)</th>",
                  "compared with prunesid at the same budget", "13 questions, 6 pictures",
                  "<dt>groups</dt>"):  # fmt: skip
        assert words in text, words


def test_a_browser_draws_exactly_the_kept_patches(browser: Any, folder: Path, tmp_path: Path) -> None:
    """The pixels of kept patches are those of the picture, and those of the others are dark."""
    browser.get(f"file://{folder}/page.html")
    choose(browser, "sort", "line")
    choose(browser, "setting", "64 prunesid")
    frame = browser.find_element("css selector", ".frame")
    shot = np.asarray(Image.open(io.BytesIO(frame.screenshot_as_png)).convert("L").resize((576, 576)), np.float32)
    original = np.asarray(Image.open(folder / "scene0.png").convert("L").resize((576, 576)), np.float32)
    record = next(r for r in page_data(folder / "page.html")["records"] if r["line"] == 1)
    kept = kept_numbers(record["answers"]["64 prunesid"]["patches"][0])
    inner = slice(6, 18)  # within the outline
    for number in range(576):
        row, column = divmod(number, 24)
        patch = np.s_[24 * row : 24 * row + 24, 24 * column : 24 * column + 24]
        ratio = shot[patch][inner, inner].mean() / max(original[patch][inner, inner].mean(), 1)
        assert (ratio > 0.7) == (number in kept), (number, ratio)


def test_a_browser_is_used_by_keyboard_and_in_print(browser: Any, folder: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.get(f"file://{folder}/page.html")
    for keys, expected in (("j", 0), ("jj", 2), ("k", 1)):
        ActionChains(browser).send_keys(keys).perform()
        articles = browser.find_elements("css selector", "article")
        assert browser.switch_to.active_element == articles[expected]
    ActionChains(browser).send_keys("v").perform()
    assert browser.find_element("css selector", "[value=groups]").is_selected()
    reached = set[str]()
    for _ in range(12):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.switch_to.active_element.tag_name)
    assert {"button", "article"} <= reached
    pdf = base64.b64decode(browser.print_page())
    assert pdf.startswith(b"%PDF") and len(browser.find_elements("css selector", "article")) == 13
    assert browser.get_log("browser") == []


def test_a_thousand_records_load_as_they_are_needed(browser: Any, folder: Path, tmp_path: Path) -> None:
    text, data = (folder / "page.html").read_text(), page_data(folder / "page.html")
    data["records"] = [{**record, "line": n} for n, record in enumerate((data["records"] * 80)[:1000], 1)]
    start, end = text.index('id="data">') + 10, text.index("</script>", text.index('id="data">'))
    (tmp_path / "page.html").write_text(text[:start] + json.dumps(data).replace("<", "\\u003c") + text[end:])
    browser.get(f"file://{tmp_path}/page.html")
    assert browser.find_element("id", "count").text == "1000 of 1000"
    assert len(browser.find_elements("css selector", "article")) < 100
    for _ in range(60):
        browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert len(browser.find_elements("css selector", "article")) > 300
    assert browser.get_log("browser") == []


def test_the_page_fits_narrow_windows_and_dark_ones(browser: Any, folder: Path) -> None:
    for width in (360, 800, 1600):
        browser.set_window_size(width, 900)
        browser.get(f"file://{folder}/page.html")
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), width
    backs = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        backs.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert backs == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


def test_the_page_of_a_cache_in_a_browser(browser: Any, run: Run, pictures: list[Path], tmp_path: Path) -> None:
    run("compress", pictures[0].parent, "--out", tmp_path / "c")
    run("report", tmp_path / "c", "--out", tmp_path / "page.html")
    assert run("answer", tmp_path / "c", PROMPT).code == 0
    browser.get(f"file://{tmp_path}/page.html")
    assert len(browser.find_elements("css selector", "article")) == 10
    assert "62 of 576 patches kept, and 1 CLS" in browser.find_element("css selector", "figcaption").text
    assert not browser.find_element("id", "setting-label").is_displayed()
    assert browser.get_log("browser") == []
