"""The page of an evaluation: a table, a chart, and the records with their pictures and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunesid_cli.errors import UsageError
from prunesid_cli.evaluate.metrics import choose_metric, normalized_words
from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.report import make_table, measure_name, summarize
from prunesid_cli.evaluate.results import RECORD_FIELDS, PruningSetting, Results, ScoredAnswer
from prunesid_cli.report.chart import draw_chart
from prunesid_cli.report.page import write_page
from prunesid_cli.report.pictures import Pictures
from prunesid_cli.text import plural


def write_evaluation(
    path: Path,
    settings: Sequence[PruningSetting],
    records: Sequence[Record],
    results: Results,
    max_records: int,
    on_record: Callable[[], object] = lambda: None,
) -> None:
    """Write the page of an evaluation.

    Args:
        path: The page, checked by `page.check_page`.
        settings: The settings; the first one is without pruning.
        records: The records.
        results: The answers.
        max_records: How many records are shown: those with changed answers, and then the first ones. The table and the
            chart are about all.
        on_record: Called after each record.

    Raises:
        UsageError: No record was answered under all settings.
        PruneSIDError: The page cannot be written.
    """
    summaries = summarize(settings, records, results)
    if not summaries:
        raise UsageError("no record was answered under all settings", "run evaluate to its end first")
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
    num_answered = sum((record.key, str(settings[0])) in results.answers for record in records)
    facts = [f"model {model}", plural(num_answered, "record"), plural(len(pictures.panels), "picture")]
    facts += [f"{len(shown):,} records shown"] if len(shown) < num_answered else []
    data = {
        "settings": [{"name": str(setting)} for setting in settings],
        "media": pictures.panels,
        "records": shown,
    }
    notes = (
        "The first interval is that of the accuracy, the second that of its share of the unpruned accuracy (95 %, by "
        "bootstrap over pictures).",
    )
    title = f"{measure} with fewer visual tokens".capitalize()
    write_page(path, title, facts, data, make_table(summaries, measure), draw_chart(summaries, measure), notes)


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
                metric=choose_metric(answers),
                key=answer.key,
            )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no answers of evaluate", hint) from error
    if "all" not in settings:
        raise UsageError(f"{path} has no answers without pruning", "run evaluate with all among the budgets")
    results.context = context
    ordered = [settings.pop("all"), *settings.values()]
    return ordered, sorted(records.values(), key=lambda record: record.line_number), results
