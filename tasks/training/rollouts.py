"""A round's answers: asked of the policy, scored, held against the reference, and what each of their tokens was worth.

Everything but the advantage is common to PPO, RLOO and GRPO.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tasks.training.adapters import Reference
from tasks.training.batches import in_batches
from tasks.training.end_to_end import cut_for
from tasks.training.ensemble import Ensemble
from tasks.training.estimators import (
    explained_variance,
    gae,
    group_advantages,
    kl_estimate,
    leave_one_out_advantages,
    token_rewards,
    whiten,
)
from tasks.training.logprobs import spread, states_before, tree_logprobs
from tasks.training.models import RewardModel
from tasks.training.onlooker import Stats
from tasks.training.sampling import Sampler, Sampling, sample
from tasks.training.trees import Tree, trees_of
from tasks.training_config import PolicyConfig


class ValueHead(nn.Module):
    """A critic that is a head on the policy, 0 everywhere at first: it reads the states that the policy's own head reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The value before each token of answers, (answers, longest); 0 on padding.

        hidden: (tokens, width), the states before the tokens, in order. mask: (answers, longest).
        """
        return spread(self.head(hidden).squeeze(-1).float(), mask)


@dataclass
class Models:
    """policy is trained, reference stays the SFT model, reward_model scores. critic is trained too; RLOO and GRPO have none.

    sampler: who says the policy's answers.
    """

    policy: PreTrainedModel
    reference: Reference
    reward_model: Callable[[Sequence[Tree]], Tensor]
    critic: RewardModel | ValueHead | None = None
    sampler: Sampler = sample

    @property
    def trained(self) -> nn.ModuleDict:
        """What is trained, as one model."""
        return nn.ModuleDict({"policy": self.policy} | ({"critic": self.critic} if self.critic else {}))

    def scores(self, trees: Sequence[Tree]) -> Tensor:
        """The reward model's score of each answer and, of an ensemble, how far its members differ; (answers, 2)."""
        if isinstance(self.reward_model, Ensemble):
            return self.reward_model.with_spread(trees)
        scores = self.reward_model(trees)
        return torch.stack([scores, torch.zeros_like(scores)], 1)

    def values(self, trees: Sequence[Tree]) -> Tensor:
        """The critic's value before each token of the trees' answers, (answers, longest)."""
        assert self.critic is not None
        if isinstance(self.critic, ValueHead):
            return self.critic(*states_before(self.policy, trees))
        return self.critic.values(trees)


@dataclass(frozen=True)
class Episode:
    """An answer and what was said of it. score: the reward model's own. uncertainty: the standard deviation of its members'.

    logprobs, reference, values: of each token, by the policy that said it, the reference and the critic, if there is one.
    """

    tree: Tree
    stopped: bool
    score: float
    uncertainty: float
    logprobs: list[float]
    reference: list[float]
    values: list[float]


@torch.inference_mode()
def ask(models: Models, prompts: list[list[int]], config: PolicyConfig, sampling: Sampling, eos: int, noise: Tensor) -> list[Episode]:
    """An answer to each prompt, read once by each of the models. noise: a row of `Sampling.noise` for each prompt."""
    found = models.sampler(models.policy, prompts, sampling, eos, noise)
    trees = trees_of(prompts, [answer.tokens for answer in found])

    def told(read: Callable[[list[Tree]], Tensor]) -> list[Any]:
        return in_batches(trees, config.tokens_at_once, lambda part: read(part).tolist(), cut_for(models.policy))

    scores = told(models.scores)
    with models.reference() as model:
        reference = told(lambda part: tree_logprobs(model, part, config.temperature)[0])
    critic = told(models.values) if models.critic else [[] for _ in trees]
    return [
        Episode(tree, answer.stopped, score, unsure, answer.logprobs, theirs[: len(answer.tokens)], valued[: len(answer.tokens)])
        for tree, answer, (score, unsure), theirs, valued in zip(trees, found, scores, reference, critic, strict=True)
    ]


@dataclass
class Rollout:
    """A round's answers, ready to learn from. Tensors are (rows, time), 0 on padding; values and returns 0 without a critic.

    beta: weight of the KL in this round. stats: what people want to know of the round.
    """

    trees: list[Tree]
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    mask: Tensor
    advantages: Tensor
    returns: Tensor
    beta: float
    stats: Stats

    def rows(self, where: Sequence[int], device: torch.device | str = "cpu") -> Rollout:
        """The same for some of the rows, cut to the longest of their answers."""
        width = max(len(self.trees[i].answers[0]) for i in where)
        names = ("logprobs", "reference", "values", "mask", "advantages", "returns")
        cut = {name: getattr(self, name)[list(where), :width].to(device) for name in names}
        return Rollout([self.trees[i] for i in where], **cut, beta=self.beta, stats={})


def weigh(episodes: list[Episode], config: PolicyConfig, beta: float) -> Rollout:
    """Rewards and advantages of a round's answers, those to one prompt side by side. beta: weight of the KL penalty."""
    lengths = [len(episode.logprobs) for episode in episodes]
    logprobs, reference, values = (
        pad_sequence([torch.tensor(getattr(episode, name)) for episode in episodes], batch_first=True)
        for name in ("logprobs", "reference", "values")
    )
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).float()
    own = torch.tensor([episode.score for episode in episodes])
    stopped = torch.tensor([float(episode.stopped) for episode in episodes])
    scores = own if config.score_clip is None else own.clamp(-config.score_clip, config.score_clip)
    scores = scores - config.no_stop_penalty * (1 - stopped)
    penalty = kl_estimate(logprobs, reference, config.kl.estimator) * mask
    rewards = token_rewards(scores, penalty, mask, beta if config.kl.place == "reward" else 0.0)
    k1, k3 = (kl_estimate(logprobs, reference, kind) * mask for kind in ("k1", "k3"))
    stats = {
        "own_reward": float(own.mean()),
        "own_reward_sd": float(own.std()),
        "uncertainty": statistics.fmean(episode.uncertainty for episode in episodes),
        "kl": float(k1.sum(1).mean()),
        "kl_k3": float(k3.sum(1).mean()),
        "kl_token": float(k1.sum() / mask.sum()),
        "reward_with_penalty": float(rewards.sum(1).mean()),
        "length": float(mask.sum(1).mean()),
        "no_stop": float(1 - stopped.mean()),
        "distinct": len({tuple(episode.tree.answers[0]) for episode in episodes}) / len(episodes),
        "beta": beta,
    }
    if config.method == "ppo":
        if config.ppo.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True)
        advantages, returns = gae(rewards, values, mask, config.ppo.gamma, config.ppo.lam)
        stats["explained_variance"] = explained_variance(values, returns, mask)
        advantages = whiten(advantages, mask)
    else:
        values = returns = torch.zeros_like(mask)
        totals, present = rewards.sum(1), mask.any(1)
        if config.method == "rloo":
            advantages = leave_one_out_advantages(totals, present, config.group)
        else:
            advantages = group_advantages(totals, present, config.group, config.grpo.scale)
        advantages = advantages.unsqueeze(1) * mask
    return Rollout([e.tree for e in episodes], logprobs, reference, values, mask, advantages, returns, beta, stats)
