"""Results: the answer to each record under each setting, in memory and in a file from which a run continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunesid_cli.errors import MediaError, PruneSIDError
from prunesid_cli.evaluate.records import Record
from prunesid_cli.inputs.video.load import hash_media
from prunesid_cli.runtime.line_file import LineFile, open_lines
from prunesid_cli.visualization.patches import PatchRecord

LINE_PATTERN = rb'\{"line": \d+, "media": \[.*'
"""Regular expression of a line of the results file."""
RECORD_FIELDS = ("line", "media", "prompt", "kind", "expected", "metric")
"""Fields of a line of the results file that describe the record. They are for people, and not read back."""


@dataclass(frozen=True)
class PruningSetting:
    """A budget and a method.

    Attributes:
        keep: The budget as given to --keep.
        method: Name of the selection method.
    """

    keep: str
    method: str

    def __str__(self) -> str:
        return "all" if self.keep == "all" else f"{self.keep} {self.method}"


@dataclass(frozen=True)
class ScoredAnswer:
    """The answer to one record under one setting. The results file stores these fields.

    Attributes:
        key: Key of the record.
        digest: Digest of the media.
        setting: The setting as text.
        answer: The generated answer.
        tokens: Visual tokens before pruning.
        kept: Visual tokens after pruning.
        score: Score of the answer; None if no answer is expected.
        divergence: Kullback-Leibler divergence of the first token from the unpruned one, in nats, if measured.
        seen: Share of the area of the media that the model sees, on average. The file has it only if it is below 1.
        patches: Which patches of each medium are kept; empty if that is not known.
    """

    key: str
    digest: str
    setting: str
    answer: str
    tokens: int
    kept: int
    score: float | None = None
    divergence: float | None = None
    seen: float = 1.0
    patches: tuple[PatchRecord, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return the answer as the results file stores it."""
        left_out = {"seen"} if self.seen >= 1 else set()
        left_out |= set() if self.patches else {"patches"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass
class Results:
    """All answers so far.

    Attributes:
        file: The results file; None to keep answers in memory only.
        context: What answers depend on besides record and setting, such as the model. Lines of the file with another
            context are ignored.
        answers: (key of a record, setting as text) -> answer.
        failed: Key of a record that could not be asked -> error.

    Raises:
        UsageError: The file is not a results file.
    """

    file: LineFile | None
    context: str
    answers: dict[tuple[str, str], ScoredAnswer] = field(default_factory=dict)
    failed: dict[str, PruneSIDError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is None:
            return
        for number, line in enumerate(self.file.read(), 1):
            try:
                fields = json.loads(line)
                context = fields.pop("context")
                answer = ScoredAnswer(**{name: value for name, value in fields.items() if name not in RECORD_FIELDS})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise self.file.not_ours(number) from error
            if context == self.context:
                self.answers[answer.key, answer.setting] = answer

    def forget_changed(self, records: Sequence[Record]) -> int:
        """Forget answers to records whose media have changed, and return the number of those records."""
        digests = {key: answer.digest for (key, _), answer in self.answers.items()}
        changed = set()
        for record in records:
            if record.key in digests and _media_digest(record) not in (digests[record.key], None):
                changed.add(record.key)
        self.answers = {key: answer for key, answer in self.answers.items() if answer.key not in changed}
        return len(changed)

    def has(self, record: Record, setting: PruningSetting, with_divergence: bool = False) -> bool:
        """Whether a record was answered under a setting and, if asked for, its divergence was measured."""
        answer = self.answers.get((record.key, str(setting)))
        return answer is not None and not (with_divergence and answer.divergence is None)

    def add(self, record: Record, answers: Sequence[ScoredAnswer]) -> None:
        """Add answers to a record, and append them to the file. An answer that is known already is not replaced,
        unless its divergence is new.

        Raises:
            PruneSIDError: The file cannot be written.
        """
        new_answers = [answer for answer in answers if self._is_new(answer)]
        for answer in new_answers:
            self.answers[answer.key, answer.setting] = answer
        if self.file is None or not new_answers:
            return
        values = (record.line_number, record.media_names, record.prompt, record.kind, record.answers, record.metric)
        record_fields = dict(zip(RECORD_FIELDS, values, strict=True))
        lines = [record_fields | answer.to_record() | {"context": self.context} for answer in new_answers]
        self.file.append([json.dumps(line).encode() + b"\n" for line in lines])

    def _is_new(self, answer: ScoredAnswer) -> bool:
        known = self.answers.get((answer.key, answer.setting))
        return known is None or (known.divergence is None and answer.divergence is not None)


@contextmanager
def open_results(path: Path | None, context: str) -> Iterator[Results]:
    """Opens a results file and locks it. It need not exist.

    Args:
        path: The file; None to keep answers in memory only.
        context: See `Results`.

    Raises:
        UsageError: The file has other contents, or cannot be written.
        PruneSIDError: Another run writes to it.
    """
    if path is None:
        yield Results(None, context)
        return
    with open_lines(path, LINE_PATTERN) as file:
        results = Results(file, context)
        file.append([])
        yield results


def combine_digests(digests: Sequence[str]) -> str:
    """Return one short digest of several: it is stored with each answer."""
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()


def _media_digest(record: Record) -> str | None:
    """Digest of a record's media; None if they cannot be read: then their answers stay valid."""
    try:
        return combine_digests([hash_media(path) for path in record.media])
    except MediaError:
        return None
