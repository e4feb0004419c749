"""Estimators of reinforcement learning from feedback: KL, rewards by token, advantages, whitening, the KL controller.

Pure functions of tensors of shape (rows, time); `mask` is 1.0 on the tokens of the answer, 0.0 on padding.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 of KL(policy || reference) at tokens sampled from the policy, each of the input's shape, in nats.

    With d = log pi - log pi_ref: k1 = d and k3 = exp(-d) - 1 + d both have the KL as their mean, k3 is never
    negative; k2 = d^2 / 2 is biased, but has the KL's gradient when used as a loss. Source: Schulman 2020,
    "Approximating KL divergence".
    """
    d = logprobs - ref_logprobs
    return d, d**2 / 2, torch.exp(-d) - 1 + d


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


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta (log pi - log pi_ref) at every token, plus the sequence's score at its last token.

    scores: (rows,). Others (rows, time). Returns (rows, time), 0 on padding. Source: Ziegler et al. 2019, eq. 2.
    """
    rewards = -beta * (logprobs - ref_logprobs) * mask
    last = mask.sum(1).long().sub(1).clamp(min=0)
    rewards[torch.arange(len(rewards)), last] += scores
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
