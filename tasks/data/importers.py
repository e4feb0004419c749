"""From files that annotation tools and public sets left to Prefline's records.

Files are streamed row by row; formats say what a row means. Whether the records are any good is for the contract to
judge, not for importers. What gave no record comes out too, as a Reject, so that nothing is lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.data import hub
from tasks.data.files import files, rows
from tasks.data.formats import Found, Rating, Reading, Unusable, ratings, read_row
from tasks.data.json_rows import EXCERPT, Broken, value
from tasks.data.records import Comparison, Demonstration, digest

ROW_LIMIT = 1_000_000
"""Bytes of a row that a reject still holds whole."""
RATED_TOGETHER = 64
"""Rated answers to one prompt that are compared with each other: their pairs grow with the square of their number."""
REJECT_FIELDS = {"source", "line", "reason", "row"}


@dataclass(frozen=True, slots=True)
class Reject:
    """A row, or a part of one, that gave no record. line: as files.rows counts.

    reason: what kind of fault, with what differs from row to row in brackets at its end. row: the row itself, as it was
    parsed, or its text; of a very long one the beginning. skipped: an annotator passed the task by, which is no fault.
    A file of rejects can be imported like any other, once its rows are mended.
    """

    source: str
    line: int
    reason: str
    row: Any
    skipped: bool = False


def import_file(
    path: Path | str,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    name: str | None = None,
) -> Iterator[Comparison | Demonstration | Reject]:
    """Records and rejects of a file, of all known files in a folder, or of a data set on a hub ("hub:OWNER/NAME").

    name: what to call the source in records and messages. Raises PreflineError where a file as a whole can't be read:
    missing, empty, damaged, of an unknown kind. What came out of it before is then not to be used.
    """
    if str(path).startswith(hub.PREFIX):
        yield from _Import(name or str(path), reading).records(hub.rows(str(path)))
        return
    for file, label in files(Path(path), name or str(path)):
        yield from _Import(label, reading).records(rows(file, label))


def place(source: str, source_id: str | int) -> str:
    """Where a record came from, for messages."""
    return f"{source}, {'line' if '.jsonl' in source or '.csv' in source else 'row'} {source_id}"


@dataclass(frozen=True, slots=True)
class _Rated:
    """A rated answer that waits for others to the same prompt."""

    source: str
    line: int
    row: Any
    rating: Rating


class _Import:
    """One file on its way in."""

    def __init__(self, label: str, reading: Reading) -> None:
        self._label, self._reading = label, reading
        self._said: set[int] = set()
        self._again: Counter[int] = Counter()
        self._place: tuple[str, int] | None = None
        self._here: Counter[int] = Counter()
        self._before: Counter[int] = Counter()
        self._rated: list[_Rated] = []

    def records(self, numbered: Iterator[tuple[int, Any]]) -> Iterator[Comparison | Demonstration | Reject]:
        for number, content in numbered:
            source, line, row = self._label, number, content
            if isinstance(content, dict) and content.keys() >= REJECT_FIELDS:
                source, line, row = _rejected_before(content, source, line)
            self._begin(source, line)
            try:
                for found in _found(row, self._reading):
                    if isinstance(found, Comparison | Demonstration):
                        yield from self._complete(found, source, line)
                    elif isinstance(found, Rating):
                        if self._rated and (found.prompt != self._rated[0].rating.prompt or len(self._rated) == RATED_TOGETHER):
                            yield from self._compared()
                        self._rated.append(_Rated(source, line, row, found))
                    else:
                        yield _reject(source, line, found, row)
            except Unusable as fault:
                yield _reject(source, line, fault, row.row if isinstance(row, Broken) else row)
        yield from self._compared()

    def _compared(self) -> Iterator[Comparison | Demonstration | Reject]:
        """The comparisons of the answers that wait; a reject for an answer that has no other to be compared with."""
        waiting, self._rated = self._rated, []
        by_annotator: dict[str | None, list[_Rated]] = {}
        for rated in waiting:
            by_annotator.setdefault(rated.rating.annotator, []).append(rated)
        for group in by_annotator.values():
            first = group[0]
            self._begin(first.source, first.line)
            if len(group) == 1:
                yield _reject(first.source, first.line, Unusable("a rated answer without another one to its prompt beside it"), first.row)
                continue
            for comparison in ratings.pairs([rated.rating for rated in group]):
                yield from self._complete(comparison, first.source, first.line)

    def _begin(self, source: str, line: int) -> None:
        """A row begins. A file of rejects holds a row once for each part of it that was unusable."""
        same = self._place == (source, line)
        self._before = self._before | self._here if same else Counter()
        self._place, self._here = (source, line), Counter()

    def _complete(self, record: Comparison | Demonstration, source: str, line: int) -> Iterator[Comparison | Demonstration]:
        """Say where the record came from; give it an id and a group where it has none of its own.

        The id is of the content, and of how often this file said the same before: copies within a file stay, for the
        contract to count, while the same export read twice, or again after it grew, gives the same ids. What the same row
        of the same file said already is no copy.
        """
        record.source, record.source_id = source, str(line)
        record.group_id = record.group_id or digest("prompt", record.prompt)
        if record.id:
            yield record
            return
        if isinstance(record, Comparison):
            tie = ["tie"] if record.tie else []  # a tie and a choice between the same two texts differ
            record.id = digest("comparison", record.prompt, record.chosen, record.rejected, record.annotator, *tie)
        else:
            record.id = digest("demonstration", record.prompt, record.answer)
        content = int(record.id, 16)
        self._here[content] += 1
        if self._here[content] <= self._before[content]:
            return
        if content in self._said:  # numbers of copies apart: few have any, and the set is small
            self._again[content] += 1
            record.id = digest(record.id, self._again[content])
        self._said.add(content)
        yield record


def _found(row: Any, reading: Reading) -> Iterator[Found]:
    if isinstance(row, Broken):
        raise Unusable(row.reason)
    return read_row(row, reading)


def _rejected_before(reject: dict[str, Any], source: str, line: int) -> tuple[str, int, Any]:
    """Source, line and row of a reject that was written by an earlier import."""
    if isinstance(reject["source"], str) and type(reject["line"]) is int and 0 < reject["line"] < 2**31:
        source, line = reject["source"], reject["line"]
    row = reject["row"]
    return source, line, value(row.encode() + b"\n") if isinstance(row, str) else row


def _reject(source: str, line: int, fault: Unusable, row: Any) -> Reject:
    return Reject(source, line, str(fault), _kept(row), fault.skipped)


def _kept(row: Any) -> Any:
    """The row as a reject holds it: so that it can be written as JSON and read again as what it is, and is not too long."""
    try:
        json.dumps(row, allow_nan=False)
        text = orjson.dumps(row)
    except (TypeError, ValueError):
        row = json.dumps(row, default=str)
        text = row.encode()
    return row if len(text) <= ROW_LIMIT else text[: 4 * EXCERPT].decode("utf-8", "ignore")[:EXCERPT]
