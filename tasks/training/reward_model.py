"""The reward model: comparisons as groups of answers, the loss over a group's pairs, and the scores of both sides."""

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
from tasks.training.intervals import outcomes_of
from tasks.training.loop import order_of_epoch
from tasks.training.losses import bradley_terry_loss, rao_kupper_loss
from tasks.training.models import score_trees
from tasks.training.trees import Tree


@dataclass
class Group:
    """The answers of one ranking (or one pair), each encoded once, and which beats which.

    pairs: (better, worse), places in answers; in either order for a tie. trust: in each pair, 1 where it is empty. said:
    the comparison behind each pair; where it is empty, pairs are victories of unknown strength. together: the answers
    are read as one tree, which takes a model that reads trees.
    """

    prompt: list[int]
    answers: list[list[int]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    trust: list[float] = field(default_factory=list)
    together: bool = False
    said: list[Comparison] = field(default_factory=list)

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
        """Of its row, or of the rectangle that its rows make."""
        trees = self.trees
        return len(trees) * max(tree.width for tree in trees)

    @property
    def weight(self) -> float:
        """Of the group in its step, whatever the trust in it: a step of careless labels must not be blown up to a full one."""
        return 1.0


def reward_groups(
    comparisons: Iterable[Comparison], tokenizer: PreTrainedTokenizerBase, max_tokens: int, ties: bool = False
) -> tuple[list[Group], int]:
    """Groups to train on, and how many comparisons were left out: identical answers, texts over max_tokens, ties if not wanted."""
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
        too_long = len(prompt) + max(len(chosen), len(rejected)) > max_tokens
        if chosen == rejected or too_long or (comparison.tie and not ties):
            left_out += 1
            continue
        key = (comparison.ranking or comparison.id, prompt)
        group, place = groups.setdefault(key, Group(list(prompt))), places.setdefault(key, {})
        for answer in (chosen, rejected):
            if answer not in place:
                place[answer] = len(group.answers)
                group.answers.append(list(answer))
        group.pairs.append((place[chosen], place[rejected]))
        group.said.append(comparison)
    return list(groups.values()), left_out


def at_most(groups: list[Group], comparisons: int | None, seed: int) -> list[Group]:
    """Whole groups with no more than so many comparisons, drawn by the seed; all of them for None."""
    if comparisons is None:
        return groups
    kept, count = [], 0
    for place in order_of_epoch(len(groups), seed, 0):
        if count + len(groups[place].pairs) <= comparisons:
            kept.append(groups[place])
            count += len(groups[place].pairs)
    return kept


def trust_annotators(groups: Iterable[Group], weights: Mapping[str, float]) -> None:
    """Let each comparison count as much as its annotator can be relied on. weights: by annotator; 1 for who is not among them."""
    for group in groups:
        group.trust = [weights.get(comparison.annotator or "", 1.0) for comparison in group.said]


def group_loss(model: nn.Module, groups: list[Group], centring: float = 0.0, margin: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """Sum over groups of the mean loss of a group's pairs (weight 1 / C(K, 2) a pair: Ouyang et al. 2022).

    Bradley and Terry's loss, or where the model has an eta Rao and Kupper's. Each pair counts as much as it is trusted.
    centring: weight of (r_chosen + r_rejected)^2, which keeps rewards near 0 (Eisenstein et al. 2023). margin: reward by
    which the better answer must win, for each unit of a comparison's strength. label_smoothing: share of labels taken to
    be wrong.
    """
    rewards = model([tree for group in groups for tree in group.trees])
    better, worse, weights, margins, tied = [], [], [], [], []
    first = 0
    for group in groups:
        better += [first + i for i, _ in group.pairs]
        worse += [first + j for _, j in group.pairs]
        weights += [trust / len(group.pairs) for trust in group.trust or [1.0] * len(group.pairs)]
        ties = [comparison.tie for comparison in group.said] or [False] * len(group.pairs)
        strengths = [comparison.strength or 0.0 for comparison in group.said] or [0.0] * len(group.pairs)
        margins += [0.0 if tie else margin * strength for tie, strength in zip(ties, strengths, strict=True)]
        tied += ties
        first += len(group.answers)
    chosen, rejected = rewards[better], rewards[worse]
    ahead = torch.tensor(margins, device=rewards.device)
    eta = getattr(model, "eta", None)
    if eta is None:
        loss = bradley_terry_loss(chosen, rejected, ahead, label_smoothing)
    else:
        loss = rao_kupper_loss(chosen, rejected, torch.tensor(tied, device=rewards.device), eta, ahead, label_smoothing)
    loss = loss + centring * (chosen + rejected) ** 2
    return (loss * torch.tensor(weights, device=loss.device)).sum()


def group_scores(model: nn.Module, groups: list[Group], tokens_at_once: int = 8192) -> list[float]:
    """Scores of all groups' answers, in order."""
    by_tree = score_trees(model, [tree for group in groups for tree in group.trees], tokens_at_once)
    return [score for scores in by_tree for score in scores]


def pair_scores(scores: list[float], groups: list[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected answers of every pair; scores are those of all groups' answers in order."""
    chosen, rejected, first = [], [], 0
    for group in groups:
        chosen += [scores[first + i] for i, _ in group.pairs]
        rejected += [scores[first + j] for _, j in group.pairs]
        first += len(group.answers)
    return np.array(chosen), np.array(rejected)


def accuracy(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Share of pairs whose chosen side is higher; a draw counts half."""
    return float(outcomes_of(chosen, rejected).mean())
