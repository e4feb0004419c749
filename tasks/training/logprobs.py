"""Log-probabilities of given answers, with the language-model head on the answers' positions only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.training.trees import Layout, Tree, lay_out

TOKENS_AT_ONCE = 8192
"""Tokens of prompts and answers in one batch: their keys and values stay in memory."""

LOGITS_AT_ONCE = 2**25
"""Numbers in one batch of logits (128 MB): with a large vocabulary these, and not the tokens, fill the memory."""


def tree_logprobs(model: PreTrainedModel, trees: Sequence[Tree], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all answers of all trees, in order: (logprobs, mask), each (answers, longest answer).

    Padding has logprob 0 and mask 0. mask is of floats. In nats.
    """
    layout = lay_out(trees, model.device)
    logits = _logits_before(model, layout).float() / temperature
    targets = layout.targets[layout.mask]
    found = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    logprobs = torch.zeros(layout.mask.shape, device=found.device).masked_scatter(layout.mask, found)
    return logprobs, layout.mask.float()


def answer_logprobs(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]], temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of given answers under the model: (logprobs, mask, entropy), each (rows, longest answer).

    Padding has logprob 0, mask 0. Entropy, in nats, has no gradient.
    """
    layout = lay_out([Tree(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)], model.device)
    logits = _logits_before(model, layout).float() / temperature
    normaliser = logits.logsumexp(-1)
    found = logits.gather(-1, layout.targets[layout.mask].unsqueeze(-1)).squeeze(-1) - normaliser
    nothing = torch.zeros(layout.mask.shape, device=found.device)
    with torch.no_grad():
        entropy = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return nothing.masked_scatter(layout.mask, found), layout.mask.float(), nothing.masked_scatter(layout.mask, entropy)


def rows_at_once(prompts: list[list[int]], answers: list[list[int]], tokens_at_once: int) -> int:
    """How many rows of prompt + answer make a batch of at most tokens_at_once, padding included; at least one."""
    return max(1, tokens_at_once // max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)))


@torch.inference_mode()
def given_logprobs(model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]], temperature: float) -> list[list[float]]:
    """Log-probability of each token of given answers, in nats, a list a row, in batches that fit in memory."""
    model.eval()
    size = rows_at_once(prompts, answers, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // model.config.vocab_size))
    found: list[list[float]] = []
    for first in range(0, len(prompts), size):
        batch = answers[first : first + size]
        trees = [Tree(prompt, [answer]) for prompt, answer in zip(prompts[first : first + size], batch, strict=True)]
        logprobs, _ = tree_logprobs(model, trees, temperature)
        found += [row[: len(answer)] for row, answer in zip(logprobs.tolist(), batch, strict=True)]
    return found


def _logits_before(model: PreTrainedModel, layout: Layout) -> Tensor:
    """The model's logits at the places before all answers' tokens, (tokens, vocabulary).

    The places are cut out just before the language-model head and the model does the rest itself, because some
    architectures scale or cap their logits after it (Gemma 2, Cohere, Granite).
    """
    rows, places = layout.row.unsqueeze(1).expand_as(layout.before)[layout.mask], layout.before[layout.mask]

    def cut(_: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor]:
        return (hidden[0][rows, places].unsqueeze(0),)

    with model.get_output_embeddings().register_forward_pre_hook(cut):
        return model(**layout.arguments()).logits.squeeze(0)
