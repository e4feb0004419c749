"""The losses, as pure functions of tensors. Every one is tested against a number worked out by hand."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG_RATIO_BOUND = 20.0
"""exp(20) is 5e8: beyond it a ratio says only that something broke, and its square overflows."""


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token) under each row of logits.

    logits: (..., vocabulary), before temperature. tokens: (...). Returns (...), in nats, in fp32.
    """
    return _LogProbs.apply(logits, tokens, temperature, False)[0]


def token_logprobs_and_entropy(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy of each row, in nats, which has no gradient; both (...)."""
    logprobs, entropy = _LogProbs.apply(logits, tokens, temperature, True)
    return logprobs, entropy


class _LogProbs(torch.autograd.Function):
    """Logits are the largest tensors of all: only one more of their size is kept for the way back, and each is gone over once or twice."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
        scaled = logits.float()
        scaled = scaled - scaled.amax(-1, keepdim=True)
        if temperature != 1:
            scaled /= temperature
        found = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        weights = scaled.exp() if with_entropy else scaled.exp_()
        total = weights.sum(-1, keepdim=True)
        normaliser = total.log().squeeze(-1)
        entropy = torch.zeros_like(found)
        if with_entropy:
            mean = torch.matmul(weights.unsqueeze(-2), scaled.unsqueeze(-1)).squeeze(-1) / total
            entropy = normaliser - mean.squeeze(-1)
        ctx.save_for_backward(weights, total, tokens)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.mark_non_differentiable(entropy)
        return found - normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """d log p(token) / d logit is 1 at the token less its probability, over the temperature."""
        weights, total, tokens = ctx.saved_tensors
        gradient = gradient.unsqueeze(-1) / ctx.temperature
        slope = weights * (-gradient / total)
        slope.scatter_add_(-1, tokens.unsqueeze(-1), gradient)
        return slope.to(ctx.dtype), None, None, None


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood that each chosen answer beats its rejected one.

    chosen, rejected: rewards, shape (pairs,). margin: how much better chosen must be, in reward units.
    label_smoothing: share of labels taken to be wrong, so that the other outcome counts that much.
    Returns one value a pair, shape (pairs,). Source: Christiano et al. 2017, eq. 1; margin as in Llama 2, eq. 2; smoothing as in
    Szegedy et al. 2016, section 7.
    """
    lead = chosen - rejected - margin
    return -(1 - label_smoothing) * F.logsigmoid(lead) - label_smoothing * F.logsigmoid(-lead)


def rao_kupper_loss(
    chosen: Tensor, rejected: Tensor, tied: Tensor, eta: Tensor, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood of each verdict where a lead of less than about eta is called a tie.

    With p = exp(reward) and theta = exp(eta): P(i > j) = p_i / (p_i + theta p_j), and what is left is
    P(tie) = (theta^2 - 1) p_i p_j / ((p_i + theta p_j) (theta p_i + p_j)).
    chosen, rejected: rewards, (pairs,). tied: bool, (pairs,). eta: above 0, one number. margin, label_smoothing: as in
    `bradley_terry_loss`, which this is for eta 0 and no ties. Returns one value a pair. Source: Rao and Kupper 1967.
    """
    lead = chosen - rejected - margin
    won, lost = F.logsigmoid(lead - eta), F.logsigmoid(-lead - eta)
    width = 2 * eta.clamp(min=1e-6)
    drawn = width + torch.log(-torch.expm1(-width)) + won + lost  # log(theta^2 - 1), without an overflow
    return torch.where(tied, -drawn, -(1 - label_smoothing) * won - label_smoothing * lost)


def ppo_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """The clipped surrogate, max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) with rho = pi / pi_old.

    All of shape (tokens,), padding already left out. Returns one value a token. Source: Schulman et al. 2017, eq. 7.
    """
    ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """0.5 max((v - R)^2, (v_old + clip(v - v_old, +-clip) - R)^2).

    All of shape (tokens,). Returns one value a token. Source: Schulman's baselines; details 13 in Huang et al. 2022.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Bradley and Terry's loss where beta (log pi - log pi_ref) is taken for an answer's reward.

    All of shape (pairs,): log-probabilities of whole answers, in nats. label_smoothing: share of labels taken to be
    wrong. Returns one value a pair, ln 2 where policy and reference agree. Source: Rafailov et al. 2023, eq. 7; smoothing
    as in Mitchell 2023, "A note on DPO with noisy preferences".
    """
    chosen, rejected = beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected)
    return bradley_terry_loss(chosen, rejected, label_smoothing=label_smoothing)


def ipo_loss(policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float) -> Tensor:
    """How far the log-ratio of the two answers, beside the reference's, is from 1 / (2 beta), squared.

    Shapes as in `dpo_loss`. Bounded below however sure the labels are, so that clean pairs do not pull without end.
    Returns one value a pair. Source: Azar et al. 2023, eq. 17, whose tau is beta.
    """
    log_ratio = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return (log_ratio - 1 / (2 * beta)) ** 2
