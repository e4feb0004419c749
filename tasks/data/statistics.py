"""What a data set is like, in figures: statistics.json, for people, reports and the contract."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tasks.data.records import SPLITS, Comparison, Demonstration, Message, Record

UNKNOWN = "unknown"
"""Stands for an annotator that a source does not name."""


def words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def characters(messages: list[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def longer_chosen(comparison: Comparison) -> bool | None:
    """Was the longer answer chosen? By characters; None for a tie or for answers of one length."""
    chosen, rejected = characters(comparison.chosen), characters(comparison.rejected)
    return None if comparison.tie or chosen == rejected else chosen > rejected


class Description:
    """Figures of one kind of records, gathered as they pass by."""

    def __init__(self) -> None:
        self.rows = 0
        self._groups: set[str] = set()
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in ("splits", "sources", "tags", "annotators")}
        self._words: dict[str, list[int]] = {}
        self._ties = 0
        self._longer: Counter[bool | None] = Counter()

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records, unchanged."""
        for record in records:
            self._add(record)
            yield record

    def _add(self, record: Comparison | Demonstration) -> None:
        self.rows += 1
        self._groups.add(record.group_id)
        self._counts["splits"][record.split or UNKNOWN] += 1
        self._counts["sources"][record.source] += 1
        self._counts["tags"].update(record.tags)
        if isinstance(record, Comparison):
            self._counts["annotators"][record.annotator or UNKNOWN] += 1
            self._ties += record.tie
            self._longer[longer_chosen(record)] += 1
            texts = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
        else:
            texts = {"prompt": record.prompt, "answer": record.answer}
        for name, messages in texts.items():
            self._words.setdefault(name, []).append(words(messages))

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rows": self.rows,
            "groups": len(self._groups),
            "splits": {name: self._counts["splits"][name] for name in SPLITS},
            "words": {name: _lengths(lengths) for name, lengths in self._words.items()},
            "sources": _most_first(self._counts["sources"]),
            "tags": _most_first(self._counts["tags"]),
        }
        if self._longer:
            differ = self._longer[True] + self._longer[False]
            found["annotators"] = _most_first(self._counts["annotators"])
            found["ties"] = self._ties
            found["longer_chosen"] = round(self._longer[True] / differ, 4) if differ else None
        return found


def _lengths(lengths: Sequence[int]) -> dict[str, float]:
    return {"mean": round(statistics.fmean(lengths), 2), "median": statistics.median(lengths), "longest": max(lengths)}


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
