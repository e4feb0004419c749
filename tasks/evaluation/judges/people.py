"""People as judge: comparisons that they made of this evaluation's answers, found again by what the texts say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.data.agreement import MISSING, agreement, labels_of_matrix
from tasks.data.importers import import_file
from tasks.data.records import Comparison, Message, digest
from tasks.errors import ConfigError, PreflineError
from tasks.evaluation.answers import Judged, Outcome, Verdict, conversation
from tasks.evaluation.judges.pairs import OTHERWISE, HumanPair, Pair, of_policy
from tasks.evaluation.judges.quality import LABELS, Heard, interval_of, prefers_longer, report
from tasks.evaluation.result import JudgeReport, Spent
from tasks.training.intervals import Bootstrap

_Item = tuple[str, str, str]
"""What a comparison is of: prompt and the two answers, by their codes, the smaller one of those first."""


class ByPeople:
    """The majority of those who judged a pair, one vote each; a split vote is a tie. spent: nothing that a machine could count."""

    name: Literal["people"] = "people"
    spent = Spent()

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        """Of one person's words on one pair the last one counts. What a model labelled is no word of people."""
        self._votes: dict[_Item, dict[str, Outcome]] = {}
        self._first: dict[_Item, list[float]] = {}
        self._read = 0
        seen: set[str] = set()
        for comparison in comparisons:
            if comparison.labels_by == "ai" or comparison.id in seen:
                continue
            seen.add(comparison.id)
            self._read += 1
            item, turned = _item(comparison.prompt, conversation(comparison.chosen), conversation(comparison.rejected))
            outcome: Outcome = "tie" if comparison.tie else "loss" if turned else "win"
            self._votes.setdefault(item, {})[comparison.annotator or f"nobody named, {comparison.id}"] = outcome
            if comparison.chosen_first is not None:
                self._first.setdefault(item, []).append(float(comparison.chosen_first))

    @classmethod
    def read(cls, sources: Sequence[str], root: Path) -> ByPeople:
        """Comparisons in files or folders of any format that can be imported. Raises PreflineError where one can't be read."""
        found = (record for source, place in places_of(sources, root).items() for record in import_file(place, name=source))
        return cls([record for record in found if isinstance(record, Comparison)])

    @property
    def about(self) -> str:
        names = {name for votes in self._votes.values() for name in votes if not name.startswith("nobody named")}
        return f"{len(names)} annotators" if len(names) != 1 else "1 annotator"

    def verdicts(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        return [self._verdict(pair) for pair in pairs]

    def _verdict(self, pair: Pair) -> Verdict | None:
        item, turned = _item(pair.prompt, pair.one.text, pair.other.text)
        if item[1] == item[2]:
            return Verdict(self.name, "tie")
        if item not in self._votes:
            return None
        said = majority(list(self._votes[item].values()))
        return Verdict(self.name, OTHERWISE[said] if turned else said)

    def must_know(self, rows: Sequence[Judged]) -> None:
        """Raise PreflineError where none of them has judged the answers of these rows."""
        for name, others in (("baseline", [row.rival for row in rows]), ("SFT model", [row.sft for row in rows])):
            items = [_item(row.prompt, row.policy.text, other.text)[0] for row, other in zip(rows, others, strict=True)]
            if not any(item in self._votes or item[1] == item[2] for item in items):
                raise PreflineError(
                    f"evaluation.people: of {self._read:,} comparisons none is of this policy's answers and the {name}'s.",
                    "Labels are of one evaluation's answers, and another policy gives others. Have these labelled: run once with "
                    "evaluation.judge: reward_model, then prefline data export PATH --answers RUN.",
                )

    def report(self, rows: Sequence[Judged], bootstrap: Bootstrap) -> JudgeReport:
        """Their win rates; and, for people are what judges are measured by, how far they agree with one another.

        agreement: the chance that two of them say the same of a pair; kappa: Krippendorff's alpha. pairs: that two or more judged.
        """
        pairs = [of_policy(row, other) for row in rows for other in (row.rival, row.sft)]
        by_item = {_item(pair.prompt, pair.one.text, pair.other.text)[0]: pair for pair in pairs}
        known = [item for item in by_item if item in self._votes]
        names = sorted({name for item in known for name in self._votes[item]})
        place = {name: number for number, name in enumerate(names)}
        matrix = np.full((len(known), len(names)), MISSING, dtype=np.int64)
        for number, item in enumerate(known):
            for name, outcome in self._votes[item].items():
                matrix[number, place[name]] = LABELS[outcome]
        together = agreement(labels_of_matrix(matrix, names))
        first = [value for item in known for value in self._first.get(item, [])]
        heard = [Heard(HumanPair(by_item[item], "tie", ""), verdict) for item in known if (verdict := self._verdict(by_item[item]))]
        return report(self, rows, [], bootstrap).model_copy(
            update={
                "pairs": together.items,
                "agreement": interval_of(together.raw),
                "kappa": interval_of(together.alpha),
                "prefers_longer": prefers_longer(heard, lambda one: one.verdict.outcome),
                "prefers_first": float(np.mean(first)) if first else None,
            }
        )


def places_of(sources: Sequence[str], root: Path) -> dict[str, Path]:
    """Where the files or folders are. Raises ConfigError where one is not there."""
    places = {source: root / Path(source).expanduser() for source in sources}
    for source, place in places.items():
        if not place.exists():
            raise ConfigError(f"evaluation.people: there is no {source}.", "Name the files or folders with people's comparisons.")
    return places


def majority(votes: Sequence[Outcome]) -> Outcome:
    """What more said than anything else; a tie where no such thing is."""
    (best, most), *others = Counter(votes).most_common()
    return "tie" if others and others[0][1] == most else best


def _item(prompt: Sequence[Message], one: str, other: str) -> tuple[_Item, bool]:
    """The item, and whether its first answer is `other`. Spaces and line ends tell nothing: tools on the way change them."""
    asked = digest([[message["role"], " ".join(message["content"].split())] for message in prompt])
    codes = [digest(" ".join(text.split())) for text in (one, other)]
    return (asked, min(codes), max(codes)), codes[0] > codes[1]
