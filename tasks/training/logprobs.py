"""Log-probabilities of given answers, with the language-model head on the answers' positions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.training.end_to_end import LOGITS_AT_ONCE
from tasks.training.losses import token_logprobs, token_logprobs_and_entropy
from tasks.training.trees import Layout, Tree, lay_out_for, trees_of

TOKENS_AT_ONCE = 8192
"""Tokens of prompts and answers in one batch: their keys and values stay in memory."""


def tree_logprobs(model: PreTrainedModel, trees: Sequence[Tree], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all answers of all trees, in order: (logprobs, mask), each (answers, longest answer).

    Padding has logprob 0 and mask 0. mask is of floats. In nats.
    """
    layout = lay_out_for(model, trees)
    found = token_logprobs(_before(model, layout)[1], layout.targets[layout.mask], temperature)
    return spread(found, layout.mask), layout.mask.float()


def logprobs_at(model: PreTrainedModel, trees: Sequence[Tree], places: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities of some tokens of all answers of all trees, in order, (tokens,), in nats.

    places: of each answer, where in it those tokens stand. The first token of a text has nothing before it to be predicted from.
    """
    layout = lay_out_for(model, trees)
    wanted = torch.zeros(layout.mask.shape, dtype=torch.bool)
    for answer, own in enumerate(places):
        wanted[answer, own] = True
    layout = replace(layout, mask=wanted.to(layout.mask.device))
    return token_logprobs(_before(model, layout)[1], layout.targets[layout.mask])


@dataclass(frozen=True)
class Reading:
    """What a policy says of given answers, each (answers, longest), 0 on padding: logprobs and entropy, in nats, and mask.

    Entropy has no gradient. hidden: (tokens, width), the states that the head reads before the answers' tokens, in order.
    """

    logprobs: Tensor
    mask: Tensor
    entropy: Tensor
    hidden: Tensor


def read_answers(model: PreTrainedModel, trees: Sequence[Tree], temperature: float) -> Reading:
    """Read all answers of all trees, in order, in one pass."""
    layout = lay_out_for(model, trees)
    hidden, logits = _before(model, layout)
    found, entropy = token_logprobs_and_entropy(logits, layout.targets[layout.mask], temperature)
    return Reading(spread(found, layout.mask), layout.mask.float(), spread(entropy, layout.mask), hidden)


def states_before(model: PreTrainedModel, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
    """The states that the head reads before each token of all answers, (tokens, width), and their mask, (answers, longest)."""
    layout = lay_out_for(model, trees)
    return _before(model, layout, head=1)[0], layout.mask.float()


def spread(found: Tensor, mask: Tensor) -> Tensor:
    """Numbers of tokens in order, (tokens,), as rows with 0 on padding, of the mask's shape."""
    return torch.zeros(mask.shape, device=found.device).masked_scatter(mask.bool(), found)


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
        logprobs, _ = tree_logprobs(model, trees_of(prompts[first : first + size], batch), temperature)
        found += [row[: len(answer)] for row, answer in zip(logprobs.tolist(), batch, strict=True)]
    return found


def _before(model: PreTrainedModel, layout: Layout, head: int | None = None) -> tuple[Tensor, Tensor]:
    """Hidden states (tokens, width) and logits (tokens, vocabulary) at the places before all answers' tokens.

    head: how many of the tokens, from the first, get logits; all of them for None.

    The places are cut out just before the language-model head and the model does the rest itself, because some
    architectures scale or cap their logits after it (Gemma 2, Cohere, Granite).
    """
    rows, places = layout.row.unsqueeze(1).expand_as(layout.before)[layout.mask], layout.before[layout.mask]
    kept: list[Tensor] = []

    def cut(_: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor]:
        kept.append(hidden[0][rows, places])
        return (kept[0][:head].unsqueeze(0),)

    with model.get_output_embeddings().register_forward_pre_hook(cut):
        logits = model(**layout.arguments()).logits.squeeze(0)
    return kept[0], logits
