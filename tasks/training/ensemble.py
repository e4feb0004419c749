"""Reward models side by side as one scorer: members that differ in where their head began and in their order of data.

Where they agree the score can be relied on; where they differ, an optimised policy has found what the data do not say
(Coste et al. 2023, "Reward model ensembles help mitigate overoptimization").
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tasks.errors import PreflineError
from tasks.training.models import RewardModel
from tasks.training.trees import Tree

Combine = Literal["mean", "min", "mean_minus_variance"]

MEMBERS = "members"
"""Below the folder of the first member, which is whole without it: those of the others, named 1, 2, ..., and SETTINGS."""
SETTINGS = "ensemble.json"


def combined(scores: Tensor, how: Combine, variance_weight: float = 1.0) -> Tensor:
    """One score an answer, (answers,), of those by each member, (members, answers).

    min is the worst case, mean_minus_variance takes off variance_weight for each unit of the members' variance (divided
    by their number, not by one less). Source: Coste et al. 2023, section 3.2.
    """
    if how == "min":
        return scores.min(0).values
    if how == "mean_minus_variance":
        return scores.mean(0) - variance_weight * scores.var(0, correction=0)
    return scores.mean(0)


class Ensemble(nn.Module):
    """Called like the reward models that it is made of."""

    def __init__(self, members: Sequence[RewardModel], how: Combine, variance_weight: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.how: Combine = how
        self.variance_weight = variance_weight

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, trees: Sequence[Tree]) -> Tensor:
        """Scores of all answers of the trees, in order, (answers,)."""
        return self.with_spread(trees)[:, 0]

    def with_spread(self, trees: Sequence[Tree]) -> Tensor:
        """Scores of all answers, and the standard deviation of what the members say of each, (answers, 2)."""
        scores = torch.stack([member(trees) for member in self.members])
        return torch.stack([combined(scores, self.how, self.variance_weight), scores.std(0, correction=0)], 1)

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """The first member in folder, as a reward model of its own; the others below it."""
        for number, member in enumerate(self.members):
            assert isinstance(member, RewardModel)
            member.save(tokenizer, folder / MEMBERS / str(number) if number else folder)
        settings = {"members": len(self.members), "combine": self.how, "variance_weight": self.variance_weight}
        (folder / MEMBERS / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")


Scorer = RewardModel | Ensemble


def load_scorer(folder: Path) -> Scorer:
    """The reward model in a folder, or the ensemble, as it was saved. Raises PreflineError where a member is missing."""
    path = folder / MEMBERS / SETTINGS
    if not path.exists():
        return RewardModel.load(folder)
    settings = json.loads(path.read_text(encoding="utf-8"))
    folders = [folder, *(folder / MEMBERS / str(number) for number in range(1, settings["members"]))]
    for member in folders:
        if not member.is_dir():
            raise PreflineError(
                f"{path} speaks of {settings['members']} members, but there is no {member}.",
                "Copy the whole folder, or remove its members/ to score with the first one alone.",
            )
    return Ensemble([RewardModel.load(member) for member in folders], settings["combine"], settings["variance_weight"])


def ensemble_tag(folder: Path) -> dict[str, str]:
    """What a registry must say of an ensemble of which it keeps the first member alone; nothing of a single model."""
    path = folder / MEMBERS / SETTINGS
    if not path.exists():
        return {}
    settings = json.loads(path.read_text(encoding="utf-8"))
    return {"prefline.ensemble": f"member 1 of {settings['members']}; policies were trained on their {settings['combine']}"}
