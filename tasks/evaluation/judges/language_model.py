"""A language model as judge: asked about every pair in both orders; it wins only what it wins in both.

Models prefer what they read first or last (Zheng et al. 2023, section 3.3). So orders that disagree count as a tie, and
so does a pair of which one reply can't be read; both are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from tasks.config import LanguageModelConfig
from tasks.evaluation.answers import Outcome, Verdict, conversation
from tasks.evaluation.judges.pairs import OTHERWISE, Pair
from tasks.evaluation.judges.replies import Replies, key_of
from tasks.evaluation.judges.speakers import Budget, LanguageModel
from tasks.evaluation.judges.template import Letter, Template, read_verdict
from tasks.evaluation.result import Spent

FIRST_SHOWN: dict[Letter, Outcome] = {"A": "win", "B": "loss", "TIE": "tie"}


class ByLanguageModel:
    """replies: those of earlier runs. progress: called with how many replies came, of how many that are missing."""

    name: Literal["language_model"] = "language_model"

    def __init__(
        self,
        config: LanguageModelConfig,
        model: LanguageModel,
        template: Template,
        replies: Replies,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._config = config
        self._model = model
        self._template = template
        self._replies = replies
        self._progress = progress
        self._budget = Budget(config.budget)
        self._said: dict[str, str] = {}
        self._cached = 0
        self._seconds = 0.0

    @property
    def about(self) -> str:
        return self._model.about

    @property
    def spent(self) -> Spent:
        return Spent(calls=self._budget.calls, cached=self._cached, tokens=self._budget.tokens, seconds=round(self._seconds, 3))

    def verdicts(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """Answers that read the same tie unasked. Raises PreflineError where the model can't be asked, or is asked too much."""
        orders = [self._orders(pair) for pair in pairs]
        self.ask([text for both in orders for text in both])
        return [self._verdict(both) for both in orders]

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Ask about all pairs that will come, so that what they cost is known before the first of them is paid for."""
        self.ask([text for pair in pairs for text in self._orders(pair)])

    def ask(self, texts: Sequence[str]) -> None:
        """See that each text has a reply: from this run, from an earlier one, or now."""
        keys = {text: key_of(self._model.identity, self._config.reply_tokens, text) for text in texts if text not in self._said}
        known = self._replies.known(list(keys.values()))
        self._said |= {text: known[key] for text, key in keys.items() if key in known}
        self._cached += sum(key in known for key in keys.values())
        missing = [text for text, key in keys.items() if key not in known]
        self._budget.refuse(len(missing))
        begun = time.monotonic()
        for done, (text, reply) in enumerate(self._model.replies(missing, self._budget), 1):
            self._replies.keep(keys[text], self._model.about, reply)
            self._said[text] = reply
            self._progress(done, len(missing))
        self._seconds += time.monotonic() - begun

    def _orders(self, pair: Pair) -> tuple[str, ...]:
        """What is asked with `one` shown first, and with `other` first; nothing of equal answers."""
        one, other = pair.one.text, pair.other.text
        prompt = conversation(pair.prompt)
        return () if one == other else (self._template.filled(prompt, one, other), self._template.filled(prompt, other, one))

    def _verdict(self, orders: tuple[str, ...]) -> Verdict:
        if not orders:
            return Verdict(self.name, "tie")
        one_first, other_first = (read_verdict(self._said[text]) for text in orders)
        by_order = (
            FIRST_SHOWN[one_first] if one_first else None,
            OTHERWISE[FIRST_SHOWN[other_first]] if other_first else None,
        )
        agreed = by_order[0] if by_order[0] == by_order[1] else None
        return Verdict(self.name, agreed or "tie", by_order)
