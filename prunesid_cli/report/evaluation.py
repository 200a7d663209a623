"""The page of an evaluation: a table, a chart, and the records with their pictures and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunesid_cli.errors import PruneSIDError, UsageError
from prunesid_cli.evaluate.metrics import METRICS, normalized_words
from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.report import (
    SettingSummary,
    compare_methods,
    format_interval,
    format_share_interval,
    measure_name,
)
from prunesid_cli.evaluate.results import RECORD_FIELDS, PruningSetting, Results, ScoredAnswer
from prunesid_cli.evaluate.statistics import PairedDifference, RelativeAccuracy
from prunesid_cli.report.chart import draw_chart
from prunesid_cli.report.page import VISUAL_TOKENS, Link, Table, write_page
from prunesid_cli.report.pictures import Pictures
from prunesid_cli.text import plural

FEW_MEDIA = 30
"""Pictures below which the page warns."""


def write_evaluation(
    path: Path,
    summaries: Sequence[SettingSummary],
    records: Sequence[Record],
    results: Results,
    max_records: int,
    on_record: Callable[[], object] = lambda: None,
    errors: Sequence[PruneSIDError] = (),
) -> None:
    """Write the page of an evaluation.

    Args:
        path: The page, checked by `page.check_page`.
        summaries: The settings, as `summarize` gives them; the first one is without pruning.
        records: The records.
        results: The answers.
        max_records: How many records are shown: those with changed answers, and then the first ones. The table and the
            chart are about all.
        on_record: Called after each record.
        errors: Errors of lines that are no records.

    Raises:
        UsageError: No record was answered under all settings.
        PruneSIDError: The page cannot be written.
    """
    if not summaries:
        raise UsageError("no record was answered under all settings", "run evaluate to its end first")
    settings = [summary.setting for summary in summaries]
    pictures, shown = Pictures(), list[dict[str, Any]]()
    for record in _choose(records, settings, results, max_records):
        answers = {setting: results.answers.get((record.key, str(setting))) for setting in settings}
        unpruned = results.answers[record.key, str(settings[0])]
        for number, (name, media) in enumerate(zip(record.media_names, record.media, strict=True)):
            pictures.add(name, media, unpruned.patches[number] if unpruned.patches else None)
        shown.append(
            {
                "line": record.line_number,
                "prompt": record.prompt,
                "kind": record.kind,
                "expected": record.answers,
                "media": record.media_names,
                "answers": {str(setting): _describe(answer, unpruned) for setting, answer in answers.items() if answer},
            }
        )
        on_record()
    model = json.loads(results.context)[0] if results.context else ""
    measure = measure_name(records)
    answered = [record for record in records if (record.key, str(settings[0])) in results.answers]
    num_compared, num_media = summaries[0].accuracy.count, len({name for record in answered for name in record.media})
    facts = [f"model {model}", plural(num_compared, "question"), f"about {plural(num_media, 'picture')}"]
    if num_compared < len(answered):
        facts.append(f"{len(answered) - num_compared:,} more not answered under all settings")
    if len(shown) < len(answered):
        facts.append(f"{len(shown):,} questions shown")
    data = {
        "noun": "question",
        "settings": [{"name": str(setting), "label": _label(setting)} for setting in settings],
        "first": str(_most_interesting(summaries).setting),
        "media": pictures.panels,
        "records": shown,
    }
    notes, problems = list[str](), [error.problem for error in (*errors, *results.failed.values())]
    if problems:
        left_out = plural(len(problems), "record")
        notes.append(f"Not counted, because of errors: {left_out}. The first error: {problems[0]}.")
    if num_media < FEW_MEDIA:
        notes.append(
            f"There are only {plural(num_media, 'picture')}. Answers about one picture tend to be right or wrong "
            "together, so all intervals are wide: take more pictures before you decide."
        )
    if any(setting.method == "random" for setting in settings[1:]):
        notes.append(
            "The method random keeps the same positions in all pictures of one size, so its line is one draw of them."
        )
    title = f"{measure} with fewer visual tokens".capitalize()
    tables = [_summary_table(summaries, measure), *_kind_table(summaries, measure)]
    tables += _method_table(compare_methods(settings, records, results), settings[min(1, len(settings) - 1)].method)
    chart = draw_chart(summaries, measure, f"{plural(num_compared, 'question')}, {plural(num_media, 'picture')}")
    write_page(path, title, facts, data, tables, chart, notes, _terms(measure, answered, shown))


def _label(setting: PruningSetting) -> str:
    return "unpruned" if setting.keep == "all" else str(setting)


def _most_interesting(summaries: Sequence[SettingSummary]) -> SettingSummary:
    """The setting that the page opens with: the first one that lost an answer, or else changed one."""
    _, *pruned = summaries
    lossy = [summary for summary in pruned if summary.num_lost]
    changing = [summary for summary in pruned if summary.num_changed]
    return (lossy or changing or pruned or summaries)[0]


def _kind_table(summaries: Sequence[SettingSummary], measure: str) -> list[Table]:
    """The table of kinds of questions, if there are several."""
    kinds = summaries[0].kinds
    header = ["setting", *(f"{kind} ({accuracy.count:,})" for kind, accuracy in kinds.items())]
    rows = [[_label(summary.setting), *map(_format_kind, summary.kinds.values())] for summary in summaries]
    caption = f"{measure.capitalize()} by kind, with the number of questions"
    return [Table(caption, header, rows)] if len(kinds) > 1 else []


def _method_table(compared: Sequence[tuple[PruningSetting, PairedDifference]], first: str) -> list[Table]:
    """The table of methods with the same budget, if there are several; `first` is the method of comparison."""
    rows = []
    for setting, difference in compared:
        low, high = difference.interval or (None, None)
        ends = "too few" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
        rows.append([_label(setting), f"{100 * difference.mean:+.1f} points", ends, _verdict(low, high, 0.0)])
    caption = f"Other methods, compared with {first} at the same budget on the same questions"
    return [Table(caption, ["setting", "difference", "95% interval", "verdict"], rows)] if rows else []


def _summary_table(summaries: Sequence[SettingSummary], measure: str) -> Table:
    is_scored = measure == "accuracy"
    has_divergence = all(summary.divergence is not None for summary in summaries)
    header = ["setting", "visual tokens", "share kept", measure, "95% interval"]
    header += (
        [f"share of unpruned {measure}", "interval of the share", "verdict", "lost", "gained"] if is_scored else []
    )
    header += ["changed", *["KL of first token"] * has_divergence]
    rows = []
    for summary in summaries:
        accuracy, name = summary.accuracy, str(summary.setting)
        row: list[str | Link] = [_label(summary.setting), f"{summary.kept:,.0f}", f"{summary.retention:.1%}"]
        row += [f"{accuracy.accuracy:.3f}", format_interval(accuracy)]
        counts = {"lost": summary.num_lost, "gained": summary.num_gained} if is_scored else {}
        if is_scored:
            row += ["-" if accuracy.share is None else f"{accuracy.share:.1%}", format_share_interval(accuracy)]
            row.append("" if summary is summaries[0] else _verdict(accuracy.low, accuracy.high, 1.0))
        for show, count in (counts | {"changed": summary.num_changed}).items():
            row.append("" if summary is summaries[0] else Link(f"{count:,}", name, show) if count else "0")
        if has_divergence:
            row.append(f"{summary.divergence:.4f} nats")
        rows.append(row)
    return Table("", header, rows)


def _verdict(low: float | None, high: float | None, equal: float) -> str:
    """What an interval says of a difference; `equal` is the value for none."""
    if low is None or high is None or low <= equal <= high:
        return "undecided"
    return "better" if low > equal else "worse"


def _format_kind(accuracy: RelativeAccuracy) -> str:
    """Right answers of all, where that is a number of answers; else the accuracy."""
    num_right = accuracy.accuracy * accuracy.count
    is_whole = abs(num_right - round(num_right)) < 1e-6
    return f"{round(num_right):,} of {accuracy.count:,}" if is_whole else f"{accuracy.accuracy:.3f}"


def _terms(measure: str, records: Sequence[Record], shown: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The words of the page that need an explanation, as far as they are used."""
    metrics = dict.fromkeys(record.metric for record in records if record.answers and record.metric)
    rules = "; ".join(METRICS[metric].description for metric in metrics)
    answers = [answer for record in shown for answer in record["answers"].values()]
    terms = {
        "visual tokens": VISUAL_TOKENS,
        measure: "The share of right answers." + (f" What counts as right: {rules}." if rules else "")
        if measure == "accuracy"
        else "The share of unchanged answers.",
        "unpruned": "The model reads all visual tokens.",
        "changed": "The answer has other words than the unpruned answer.",
    }
    if measure == "accuracy":
        terms["lost, gained"] = (
            "The answer is wrong, but right without pruning; or the other way round. Of graded scores: lower, higher."
        )
        terms["verdict"] = "Better or worse if the interval leaves no doubt, and undecided otherwise."
    terms["95% interval"] = (
        "By bootstrap over pictures, with two questions added to each draw: one lost and one gained. So few questions "
        "without a difference do not suggest that there is none. Of 100 such intervals, roughly 95 contain the value "
        "that endlessly many pictures of this kind would give."
    )
    if any("groups" in patches for answer in answers for patches in answer.get("patches", ())):
        terms["groups"] = (
            "PruneSID divides the patches of a picture into groups of similar ones, and keeps the most important "
            "patches of each group."
        )
    return terms


def _choose(
    records: Sequence[Record], settings: Sequence[PruningSetting], results: Results, count: int
) -> list[Record]:
    """The records to show, in their order."""
    answered = [record for record in records if (record.key, str(settings[0])) in results.answers]

    def has_changed(record: Record) -> bool:
        texts = [results.answers.get((record.key, str(setting))) for setting in settings]
        return len({tuple(normalized_words(answer.answer)) for answer in texts if answer}) > 1

    chosen = {record.key for record in sorted(answered, key=has_changed, reverse=True)[:count]}
    return [record for record in answered if record.key in chosen]


def _describe(answer: ScoredAnswer, unpruned: ScoredAnswer) -> dict[str, Any]:
    is_changed = normalized_words(answer.answer) != normalized_words(unpruned.answer)
    described: dict[str, Any] = {"text": answer.answer, "score": answer.score, "changed": is_changed}
    described |= {"kept": answer.kept, "tokens": answer.tokens}
    return described | ({"patches": answer.patches} if answer.patches else {})


def read_evaluation(path: Path, folder: Path) -> tuple[list[PruningSetting], list[Record], Results]:
    """Read the answers file of an evaluation, without the file of its questions.

    Args:
        path: The answers, as `evaluate --out` writes them. Of several models or settings, the last one counts.
        folder: Where the paths of media are relative to.

    Raises:
        UsageError: It is no such file.
    """
    hint = "name a file that evaluate --out wrote, or a cache"
    records, settings, results = dict[str, Record](), dict[str, PruningSetting](), Results(None, "")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        context = lines[-1]["context"]
        for fields in lines:
            if fields["context"] != context:
                continue
            answer = ScoredAnswer(
                **{name: value for name, value in fields.items() if name not in (*RECORD_FIELDS, "context")}
            )
            results.answers[answer.key, answer.setting] = answer
            keep, _, method = answer.setting.partition(" ")
            settings[answer.setting] = PruningSetting(keep, method)
            names, answers = tuple(fields["media"]), tuple(fields["expected"])
            records[answer.key] = Record(
                line_number=fields["line"],
                media=tuple(str(folder / name) for name in names),
                media_names=names,
                prompt=fields["prompt"],
                answers=answers,
                kind=fields["kind"],
                metric=fields.get("metric", ""),
                key=answer.key,
            )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no answers of evaluate", hint) from error
    if "all" not in settings:
        raise UsageError(f"{path} has no answers without pruning", "run evaluate with all among the budgets")
    results.context = context
    ordered = [settings.pop("all"), *settings.values()]
    return ordered, sorted(records.values(), key=lambda record: record.line_number), results
