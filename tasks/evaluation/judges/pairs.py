"""Pairs of answers as judges see them: the policy's against another model's, and those that people compared already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from tasks.data.records import Comparison, Message, digest
from tasks.data.shop import Shop
from tasks.evaluation.agreement import first_rankings
from tasks.evaluation.answers import Judged, Outcome, Reply, Texts, conversation
from tasks.training.reward_model import reward_groups

OTHERWISE: dict[Outcome, Outcome] = {"win": "loss", "loss": "win", "tie": "tie"}
"""What an outcome is for the other side."""


@dataclass(frozen=True)
class Side:
    """An answer. length: in tokens. judge: the independent reward model's score. gold: its true worth, None where nobody knows."""

    text: str
    length: int
    judge: float | None = None
    gold: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt. What a judge says of them is an outcome of `one`."""

    prompt: list[Message]
    one: Side
    other: Side


@dataclass(frozen=True)
class HumanPair:
    """A pair that a person judged, and what they said of it. group: of prompts that belong together."""

    pair: Pair
    said: Outcome
    group: str


def of_policy(row: Judged, other: Reply) -> Pair:
    """The policy's answer against another model's."""
    return Pair(row.prompt, *(Side(reply.text, reply.length, reply.judge, reply.gold) for reply in (row.policy, other)))


@dataclass(frozen=True)
class HeldOut:
    """Comparisons that people made and no scorer was trained on, before they are scored. places: of the texts of each."""

    comparisons: list[Comparison]
    places: list[tuple[int, int]]
    lengths: list[tuple[int, int]]
    groups: list[str]

    def scored(self, scores: np.ndarray, truth: Shop | None) -> list[HumanPair]:
        """As pairs in an order that tells nothing of who won. scores: the judge's, of all texts."""
        return [self._pair(number, scores, truth) for number in range(len(self.comparisons))]

    def _pair(self, number: int, scores: np.ndarray, truth: Shop | None) -> HumanPair:
        comparison = self.comparisons[number]
        asked = comparison.prompt[-1]["content"]
        texts = conversation(comparison.chosen), conversation(comparison.rejected)
        worth = [truth.gold(asked, text).utility if truth and asked in truth.by_text else None for text in texts]
        sides = zip(texts, self.lengths[number], self.places[number], worth, strict=True)
        chosen, rejected = (Side(text, length, float(scores[place]), gold) for text, length, place, gold in sides)
        if digest(chosen.text) < digest(rejected.text):
            return HumanPair(Pair(comparison.prompt, chosen, rejected), "tie" if comparison.tie else "win", self.groups[number])
        return HumanPair(Pair(comparison.prompt, rejected, chosen), "tie" if comparison.tie else "loss", self.groups[number])


def held_out_by_people(comparisons: Iterable[Comparison], tokenizer: PreTrainedTokenizerBase, max_tokens: int, texts: Texts) -> HeldOut:
    """The comparisons that `agreement.human_pairs` takes, and the ties among them; an AI's are left out. Puts their texts into `texts`."""
    found = HeldOut([], [], [], [])
    for prompt, first in first_rankings(comparison for comparison in comparisons if comparison.labels_by != "ai").items():
        groups, _ = reward_groups(first, tokenizer, max_tokens, ties=True)
        for group in groups:
            places = [texts.place(text) for text in group.texts]
            for (better, worse), comparison in zip(group.pairs, group.said, strict=True):
                found.comparisons.append(comparison)
                found.places.append((places[better], places[worse]))
                found.lengths.append((len(group.answers[better]), len(group.answers[worse])))
                found.groups.append(prompt)
    return found


def at_most(pairs: Sequence[HumanPair], count: int, seed: int) -> list[HumanPair]:
    """No more than so many pairs, of prompts drawn by the seed one after another: prompts are the independent evidence."""
    by_group: dict[str, list[HumanPair]] = {}
    for pair in pairs:
        by_group.setdefault(pair.group, []).append(pair)
    all_groups = list(by_group.values())
    groups = [all_groups[place] for place in np.random.default_rng(seed).permutation(len(all_groups))]
    drawn: list[HumanPair] = []
    for turn in range(max(map(len, groups), default=0)):
        drawn += [group[turn] for group in groups if turn < len(group)]
        if len(drawn) >= count:
            break
    return drawn[:count]
