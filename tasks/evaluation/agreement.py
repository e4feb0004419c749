"""How far a scorer (reward model or judge) agrees with people, on comparisons that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from tasks.data.records import Comparison
from tasks.evaluation.answers import Texts
from tasks.evaluation.result import Calibration
from tasks.training.calibration import accuracy_interval, calibration_error, length_correlation, prefer_longer, reliability
from tasks.training.intervals import Bootstrap, Interval
from tasks.training.reward_model import reward_groups

RANKINGS_PER_PROMPT = 2
"""More of them cost time and add little: prompts, not comparisons, are the independent evidence."""
MOST_COMPARISONS = 3000
"""As many tell an accuracy to two hundredths; all texts of a large set would take longer than everything else."""


@dataclass
class HumanPairs:
    """Comparisons as places in a collection of texts. prompts: the group of prompts of each pair; lengths in tokens."""

    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    chosen_lengths: list[int] = field(default_factory=list)
    rejected_lengths: list[int] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.chosen)

    def add(self, chosen: int, rejected: int, chosen_length: int, rejected_length: int, prompt: str) -> None:
        self.chosen.append(chosen)
        self.rejected.append(rejected)
        self.chosen_lengths.append(chosen_length)
        self.rejected_lengths.append(rejected_length)
        self.prompts.append(prompt)

    @property
    def prefer_longer(self) -> float:
        return prefer_longer(np.array(self.chosen_lengths), np.array(self.rejected_lengths))


@dataclass(frozen=True)
class Agreement:
    """accuracy: with its interval."""

    accuracy: Interval
    calibration: Calibration


def human_pairs(comparisons: Iterable[Comparison], tokenizer: PreTrainedTokenizerBase, max_tokens: int, texts: Texts) -> HumanPairs:
    """Put the texts of comparisons into `texts`: of each prompt's first rankings (or single pairs), RANKINGS_PER_PROMPT of them.

    Ties, identical answers and texts over max_tokens are left out.
    """
    pairs = HumanPairs()
    for prompt, first in first_rankings(comparisons).items():
        groups, _ = reward_groups(first, tokenizer, max_tokens)
        for group in groups:
            places = [texts.place(text) for text in group.texts]
            for better, worse in group.pairs:
                pairs.add(places[better], places[worse], len(group.texts[better]), len(group.texts[worse]), prompt)
    return pairs


def enough_of(comparisons: Iterable[Comparison], seed: int) -> list[Comparison]:
    """The first rankings of prompts that the seed draws, until they hold MOST_COMPARISONS; in the order in which they came."""
    by_prompt = list(first_rankings(comparisons).values())
    order = np.random.default_rng(seed).permutation(len(by_prompt))
    sizes = np.cumsum([len(by_prompt[place]) for place in order])
    drawn = order[: int(np.searchsorted(sizes, MOST_COMPARISONS)) + 1]
    return [comparison for place in sorted(drawn) for comparison in by_prompt[place]]


def first_rankings(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons of each prompt's first rankings (or single pairs), RANKINGS_PER_PROMPT of them, by the group of prompts."""
    by_prompt: dict[str, dict[str, list[Comparison]]] = {}
    for comparison in comparisons:
        by_prompt.setdefault(comparison.group_id, {}).setdefault(comparison.ranking or comparison.id, []).append(comparison)
    return {
        prompt: [comparison for ranking in islice(rankings.values(), RANKINGS_PER_PROMPT) for comparison in ranking]
        for prompt, rankings in by_prompt.items()
    }


def agreement(scores: np.ndarray, pairs: HumanPairs, bootstrap: Bootstrap) -> Agreement:
    """scores: of all texts. The correlation with length counts a text as often as it was compared."""
    chosen, rejected = scores[pairs.chosen], scores[pairs.rejected]
    bins = reliability(chosen - rejected)
    correlation = length_correlation(
        np.concatenate([chosen, rejected]),
        np.array(pairs.chosen_lengths + pairs.rejected_lengths, dtype=float),
        pairs.prompts * 2,
    )
    return Agreement(
        accuracy_interval(chosen, rejected, pairs.prompts, bootstrap),
        Calibration(error=calibration_error(bins), bins=bins, length_correlation=correlation),
    )
