"""Where importing puts what it finds: records by role, rejects, tasks that annotators skipped; and the count of them."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from tasks.data.importers import Reject
from tasks.data.records import Comparison, Demonstration, digest

COMPARISONS, DEMONSTRATIONS = "comparisons.jsonl", "demonstrations.jsonl"
REJECTS, SKIPPED = "rejects.jsonl", "skipped.jsonl"
REASONS = 50
"""Kinds of rejects that are counted by name."""
OTHER = "other reasons"

Role = Literal["comparisons", "demonstrations"]
ROLES: tuple[Role, ...] = ("comparisons", "demonstrations")


@dataclass
class Counts:
    """What became of the rows that are no records. rejects: by role. reasons: rejects by kind. skipped: tasks passed by."""

    rejects: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: int = 0

    def reject(self, role: Role, reason: str) -> None:
        self.rejects[role] += 1
        self.reasons[reason.split(" (")[0]] += 1

    @classmethod
    def load(cls, body: dict[str, Any]) -> Counts:
        rejects = body["rejects"]
        return cls(Counter({role: rejects[role] for role in ROLES}), Counter(rejects["reasons"]), body["skipped"])

    def body(self) -> dict[str, Any]:
        """For JSON: the commonest reasons by name."""
        kinds = sorted(((kind, count) for kind, count in self.reasons.items() if kind != OTHER), key=lambda item: (-item[1], item[0]))
        other = self.reasons[OTHER] + sum(count for _, count in kinds[REASONS:])
        reasons = dict(kinds[:REASONS]) | ({OTHER: other} if other else {})
        rejects = {"rows": self.rejects.total()} | {role: self.rejects[role] for role in ROLES}
        return {"rejects": rejects | {"reasons": reasons}, "skipped": self.skipped}


class Intake:
    """The files that importing fills.

    arrivals: how many comparisons and demonstrations came from each file, in order of arrival: neither of our files alone
    knows which of two records of different kinds came first.
    """

    def __init__(self, folder: Path) -> None:
        self.rows: Counter[str] = Counter()
        self.counts = Counts()
        self.arrivals: list[list[int]] = []
        self.first_reject: Reject | None = None
        self._open = ExitStack()
        self._files: dict[str, IO[bytes]] = {role: self._open.enter_context((folder / f"{role}.jsonl").open("wb")) for role in ROLES}
        self._rejects, self._skipped = (self._open.enter_context((folder / name).open("wb")) for name in (REJECTS, SKIPPED))

    def __enter__(self) -> Intake:
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def begin(self) -> None:
        """The next file."""
        self.arrivals.append([0, 0])

    def take(self, found: Comparison | Demonstration | Reject, roles: tuple[Role, ...]) -> None:
        """A record or a reject of a source with those roles. A comparison among the demonstrations shows its chosen answer."""
        if isinstance(found, Reject):
            self._refuse(found, roles[0])
        elif isinstance(found, Demonstration):
            if "demonstrations" in roles:
                self.add("demonstrations", found)
            else:
                reason = "a demonstration among the comparisons: name its file under data.demonstrations"
                self._refuse(unusable(found, reason), "comparisons")
        else:
            if "comparisons" in roles:
                self.add("comparisons", found)
            if "demonstrations" in roles and not found.tie:
                self.add("demonstrations", as_demonstration(found))
            elif "comparisons" not in roles:
                self._refuse(unusable(found, "a tie among the demonstrations: neither answer was chosen"), "demonstrations")

    def add(self, role: Role, record: Comparison | Demonstration) -> None:
        self._files[role].write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self.arrivals[-1][ROLES.index(role)] += 1
        self.rows[role] += 1

    def _refuse(self, row: Reject, role: Role) -> None:
        if row.skipped:
            self.counts.skipped += 1
        else:
            self.first_reject = self.first_reject or row
            self.counts.reject(role, row.reason)
        (self._skipped if row.skipped else self._rejects).write(reject_line(row, role))


def as_demonstration(comparison: Comparison) -> Demonstration:
    """The answer that was chosen, as something to imitate."""
    return Demonstration(
        id=digest("demonstration", comparison.prompt, comparison.chosen),
        prompt=comparison.prompt,
        answer=comparison.chosen,
        source=comparison.source,
        source_id=comparison.source_id,
        group_id=comparison.group_id,
        language=comparison.language,
        split=comparison.split,
        tags=comparison.tags,
    )


def unusable(record: Comparison | Demonstration, reason: str) -> Reject:
    line = int(record.source_id) if record.source_id.isdecimal() else 0
    return Reject(record.source, line, reason, json.loads(orjson.dumps(record)))


def reject_line(row: Reject, role: Role) -> bytes:
    """A line of rejects.jsonl, whatever the row holds: numbers, halves of characters and dates that orjson refuses too."""
    body = {"source": row.source, "line": row.line, "reason": row.reason, "row": row.row, "role": role}
    try:
        return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(body, default=str).encode() + b"\n"
