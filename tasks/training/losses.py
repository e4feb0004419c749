"""The losses, as pure functions of tensors. Every one is tested against a number worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""exp(20) is 5e8: beyond it a ratio says only that something broke, and its square overflows."""


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token) under each row of logits.

    logits: (..., vocabulary), before temperature. tokens: (...). Returns (...), in nats, in fp32.
    Gathers before it normalises, so that a second tensor of the vocabulary's size is never kept.
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Negative log-likelihood that each chosen answer beats its rejected one.

    chosen, rejected: rewards, shape (pairs,). margin: how much better chosen must be, in reward units.
    Returns one value a pair, shape (pairs,). Source: Christiano et al. 2017, eq. 1; margin as in Llama 2, eq. 2.
    """
    return -F.logsigmoid(chosen - rejected - margin)


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
