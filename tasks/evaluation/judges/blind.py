"""The answers of an evaluation as questions to people, who can't see which model said what."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.data.formats.writers import Question
from tasks.data.records import digest
from tasks.evaluation.answers import Judged


def questions(rows: Iterable[Judged], seed: int) -> list[Question]:
    """The policy's answers against the baseline's, the SFT model's and those of evaluation.against.

    Each pair once; equal answers are nobody's question. Sides and order are by hashes of the texts and the seed, so that
    neither tells anything.
    """
    found: dict[str, Question] = {}
    for row in rows:
        for other in (row.rival, row.sft, *(version.reply for version in row.others)):
            one, two = sorted((row.policy.text, other.text))
            if one != two:
                drawn = digest(seed, row.prompt, one, two)
                first, second = (one, two) if int(drawn, 16) % 2 else (two, one)
                found[drawn] = Question(drawn, row.prompt, first, second)
    return [found[drawn] for drawn in sorted(found)]
