"""Estimators of reinforcement learning from feedback: KL, rewards by token, whitening, advantages, the KL controller.

Pure functions of tensors of shape (rows, time); `mask` is 1.0 on the tokens of the answer, 0.0 on padding.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
SPREAD_FLOOR = 1e-4
"""Added to a group's standard deviation, so that answers of nearly equal reward are not blown up to differences."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: Estimator) -> Tensor:
    """An estimate of KL(policy || reference) at tokens sampled from the policy, of the input's shape, in nats.

    With d = log pi - log pi_ref: k1 = d and k3 = exp(-d) - 1 + d both have the KL as their mean, and k3 is never
    negative; k2 = d^2 / 2 is biased. Differentiated as a loss, at fresh samples, it is k2 that has the gradient of the KL
    of each token given those before it; k1 has none in the mean, and k3 that of KL(reference || policy).
    Source: Schulman 2020, "Approximating KL divergence".
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    return d**2 / 2 if kind == "k2" else torch.expm1(-d) + d


def kl_per_sequence(logprobs: Sequence[Sequence[float]], ref_logprobs: Sequence[Sequence[float]]) -> float:
    """KL(policy || reference) in nats a sequence: sum over an answer's tokens of log pi - log pi_ref, mean over answers.

    Unbiased for answers sampled from the policy at the temperature of the log-probabilities (k1 in Schulman 2020).
    """
    return statistics.fmean(sum(p) - sum(q) for p, q in zip(logprobs, ref_logprobs, strict=True))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all tokens of the mask (not a mean of the rows' means)."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
    """Values scaled to variance 1 over the mask, with mean 0 or, for rewards, their own mean; 0 outside the mask.

    Source: Ziegler et al. 2019, `whiten` (shift_mean=False for rewards, True for advantages).
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    white = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (white + mean if keep_mean else white) * mask


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta times the KL's estimate at every token, plus the sequence's score at its last token.

    scores: (rows,). kl: (rows, time), nats. Returns (rows, time), 0 on padding. Source: Ziegler et al. 2019, eq. 2.
    """
    rewards = -beta * kl * mask
    last = mask.sum(1).long().sub(1).clamp(min=0)
    rewards[torch.arange(len(rewards)), last] += scores * mask.any(1)
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages and returns, each (rows, time), 0 on padding.

    The value after the last token is 0: an answer ends there. returns = advantages + values, before any whitening.
    Source: Schulman et al. 2016, eq. 16.
    """
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros(len(rewards), dtype=rewards.dtype)
    values = values * mask
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(carried)
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = (delta + gamma * lam * carried) * mask[:, t]
        advantages[:, t] = carried
    return advantages, (advantages + values) * mask


def leave_one_out_advantages(rewards: Tensor, present: Tensor, group: int) -> Tensor:
    """RLOO: an answer's reward less the mean reward of the other answers to its prompt. All of shape (rows,).

    Answers to one prompt are neighbours, `group` of them. present: False for a row without tokens, which counts for
    nobody; an answer without others has advantage 0. Source: Ahmadian et al. 2024, section 2.3.
    """
    own, there = _in_groups(rewards, present, group)
    count = there.sum(1, keepdim=True)
    others = (own.sum(1, keepdim=True) - own) / (count - 1).clamp(min=1)
    return ((own - others) * there * (count > 1)).flatten()


def group_advantages(rewards: Tensor, present: Tensor, group: int, scale: bool) -> Tensor:
    """GRPO: an answer's reward less its group's mean, and divided by the group's standard deviation where scale says so.

    Shapes, present and group as in `leave_one_out_advantages`. The deviation is the sample's (over n - 1).
    Source: Shao et al. 2024, section 4.1.2; without the scale Liu et al. 2025, "Dr. GRPO".
    """
    own, there = _in_groups(rewards, present, group)
    count = there.sum(1, keepdim=True)
    centred = (own - own.sum(1, keepdim=True) / count.clamp(min=1)) * there
    if scale:
        centred = centred / (((centred**2).sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt() + SPREAD_FLOOR)
    return centred.flatten()


def _in_groups(rewards: Tensor, present: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Rewards and presence as (prompts, group); 0 where there is none. Raises ValueError where there is nobody to compare."""
    if group < 2 or len(rewards) % group:
        raise ValueError(f"{len(rewards)} rewards in groups of {group}: groups need at least 2 answers, and to be whole")
    there = present.view(-1, group).to(rewards.dtype)
    return rewards.view(-1, group) * there, there


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 for a perfect critic, 0 for a constant one."""
    kept = mask.bool()
    spread = returns[kept].var(correction=0)
    return float(1 - (returns[kept] - values[kept]).var(correction=0) / spread) if spread > 0 else 0.0


@dataclass
class AdaptiveKL:
    """The proportional controller of the KL weight: e = clip(KL / target - 1, +-0.2), beta *= 1 + e n / horizon.

    target: nats a SEQUENCE (the sum over its tokens), not a token. horizon: episodes. A fixed weight is target None.
    Source: Ziegler et al. 2019, section 2.2.
    """

    beta: float
    target: float | None
    horizon: int

    def update(self, kl_per_sequence: float, episodes: int) -> None:
        if self.target is None:
            return
        error = max(-0.2, min(0.2, kl_per_sequence / self.target - 1))
        self.beta *= 1 + error * episodes / self.horizon
