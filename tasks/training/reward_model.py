"""The reward model: comparisons as groups of answers, the Bradley-Terry loss over a group's pairs, and what it got right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tasks.data.encoding import encode_answer, encode_prompt
from tasks.data.records import Comparison, Message
from tasks.training.losses import bradley_terry_loss
from tasks.training.trees import Tree


@dataclass
class Group:
    """The answers of one ranking (or one pair), each encoded once, and which beats which.

    pairs: (better, worse), places in answers. trust: in each pair, 1 where it is empty. together: the answers are read
    as one tree, which takes a model that reads trees.
    """

    prompt: list[int]
    answers: list[list[int]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    trust: list[float] = field(default_factory=list)
    together: bool = False

    @property
    def trees(self) -> list[Tree]:
        tree = Tree(self.prompt, self.answers)
        return [tree] if self.together else tree.apart()

    @property
    def texts(self) -> list[list[int]]:
        """Prompt and answer of each, as token ids."""
        return [self.prompt + answer for answer in self.answers]

    @property
    def width(self) -> int:
        """Of its row, or all its rows."""
        return sum(tree.width for tree in self.trees)

    @property
    def weight(self) -> float:
        """Of the group in its step, whatever the trust in it: a step of careless labels must not be blown up to a full one."""
        return 1.0


def reward_groups(
    comparisons: Iterable[Comparison],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    weights: Mapping[str, float] | None = None,
) -> tuple[list[Group], int]:
    """Groups to train on, and how many comparisons were left out: ties, identical answers, texts over max_tokens.

    weights: trust by annotator, mean 1 over the comparisons; it is 1 in annotators who are not named there.
    """
    groups: dict[tuple[str, tuple[int, ...]], Group] = {}
    places: dict[tuple[str, tuple[int, ...]], dict[tuple[int, ...], int]] = {}
    encoded: dict[str, tuple[int, ...]] = {}
    left_out = 0

    def encode(prompt: list[Message], answer: list[Message] | None = None) -> tuple[int, ...]:
        key = json.dumps([prompt, answer])  # a ranking of K answers brings each of them K - 1 times
        if key not in encoded:
            encoded[key] = tuple(encode_prompt(tokenizer, prompt) if answer is None else encode_answer(tokenizer, prompt, answer))
        return encoded[key]

    for comparison in comparisons:
        prompt = encode(comparison.prompt)
        chosen, rejected = (encode(comparison.prompt, answer) for answer in (comparison.chosen, comparison.rejected))
        if comparison.tie or chosen == rejected or len(prompt) + max(len(chosen), len(rejected)) > max_tokens:
            left_out += 1
            continue
        key = (comparison.ranking or comparison.id, prompt)
        group, place = groups.setdefault(key, Group(list(prompt))), places.setdefault(key, {})
        for answer in (chosen, rejected):
            if answer not in place:
                place[answer] = len(group.answers)
                group.answers.append(list(answer))
        group.pairs.append((place[chosen], place[rejected]))
        if weights:
            group.trust.append(weights.get(comparison.annotator or "", 1.0))
    return list(groups.values()), left_out


def group_loss(model: nn.Module, groups: list[Group], centring: float = 0.0) -> Tensor:
    """Sum over groups of the mean Bradley-Terry loss of a group's pairs (weight 1 / C(K, 2) a pair: Ouyang et al. 2022).

    Each pair counts as much as it is trusted.
    centring: weight of (r_chosen + r_rejected)^2, which keeps rewards near 0 (Eisenstein et al. 2023).
    """
    rewards = model([tree for group in groups for tree in group.trees])
    better, worse, weights = [], [], []
    first = 0
    for group in groups:
        better += [first + i for i, _ in group.pairs]
        worse += [first + j for _, j in group.pairs]
        weights += [trust / len(group.pairs) for trust in group.trust or [1.0] * len(group.pairs)]
        first += len(group.answers)
    chosen, rejected = rewards[better], rewards[worse]
    loss = bradley_terry_loss(chosen, rejected) + centring * (chosen + rejected) ** 2
    return (loss * torch.tensor(weights, device=loss.device)).sum()


def pair_scores(scores: list[float], groups: list[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected texts of every pair; scores are those of all groups' texts in order."""
    chosen, rejected, first = [], [], 0
    for group in groups:
        chosen += [scores[first + i] for i, _ in group.pairs]
        rejected += [scores[first + j] for _, j in group.pairs]
        first += len(group.answers)
    return np.array(chosen), np.array(rejected)


def accuracy(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Share of pairs whose chosen side is higher; a draw counts half."""
    return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))
