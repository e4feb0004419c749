"""What every judge is, and those that read scores: the independent reward model, and gold, the known truth of the built-in set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tasks.evaluation.answers import Outcome, Verdict
from tasks.evaluation.judges.pairs import Pair
from tasks.evaluation.result import JudgeName, Spent


class Judge(Protocol):
    """Somebody who says which of two answers is better. about: which one it is, for people. spent: on all that it was asked."""

    @property
    def name(self) -> JudgeName: ...
    @property
    def about(self) -> str: ...
    @property
    def spent(self) -> Spent: ...

    def verdicts(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """A verdict on each pair; None where this judge has nothing to say. Raises PreflineError where it can't be asked."""


@dataclass(frozen=True)
class ByScore:
    """The higher score wins."""

    name: Literal["reward_model", "gold"]
    about: str
    spent: Spent = field(default_factory=Spent)

    def verdicts(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        return [self._verdict(pair) for pair in pairs]

    def _verdict(self, pair: Pair) -> Verdict | None:
        one, other = (side.gold if self.name == "gold" else side.judge for side in (pair.one, pair.other))
        if one is None or other is None:
            return None
        return Verdict(self.name, verdict(pair.one, pair.other, one, other))


class _Text(Protocol):
    @property
    def text(self) -> str: ...


def verdict(one: _Text, other: _Text, score: float, other_score: float) -> Outcome:
    """A tie where both answers read the same, whatever the scores say of where one of them was cut."""
    if score == other_score or one.text == other.text:
        return "tie"
    return "win" if score > other_score else "loss"
