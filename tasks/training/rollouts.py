"""Sampling: a decoder with a cache that shrinks as answers end and keeps each token's log-probability.

Used for PPO's rollouts, for evaluation and for `prefline ask`, so that all three see the same policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tasks.training.losses import token_logprobs
from tasks.training.models import pad, positions

TOKENS_AT_ONCE = 8192
"""Tokens of prompts and answers in one batch: their keys and values stay in memory."""

LOGITS_AT_ONCE = 2**25
"""Numbers in one batch of logits (128 MB): with a large vocabulary these, and not the tokens, fill the memory."""


@dataclass(frozen=True)
class Sampling:
    """temperature: divides the logits; 0 takes the likeliest token. max_new_tokens: where an answer is cut."""

    max_new_tokens: int
    temperature: float = 1.0


@dataclass
class Answer:
    """tokens: the answer's ids, its EOS included where it has one. logprobs: of each token when it was sampled, in nats."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@torch.inference_mode()
def sample(model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, eos: int, generator: torch.Generator) -> list[Answer]:
    """One answer to each prompt (lists of token ids), in their order.

    Prompts are left-padded. A row leaves the batch, and its keys and values the cache, once it has ended; the mask and
    the positions go with it.
    """
    model.eval()
    tokens, mask = pad(prompts, 0, side="left")
    answers = [Answer([], [], False) for _ in prompts]
    alive = torch.arange(len(prompts))
    cache = DynamicCache(config=model.config)
    step_tokens, step_positions = tokens, positions(mask)
    for _ in range(sampling.max_new_tokens):
        logits = model(
            input_ids=step_tokens, attention_mask=mask, position_ids=step_positions, cache=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        chosen = _choose(logits, sampling.temperature, generator)
        logprobs = token_logprobs(logits, chosen, sampling.temperature or 1.0)
        for row, token, logprob in zip(alive.tolist(), chosen.tolist(), logprobs.tolist(), strict=True):
            answers[row].tokens.append(token)
            answers[row].logprobs.append(logprob)
            answers[row].stopped = token == eos
        going = chosen != eos
        if not going.any():
            break
        next_positions = mask.sum(1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        step_tokens, step_positions = chosen.unsqueeze(1), next_positions
        if not going.all():
            kept = going.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            mask, step_tokens, step_positions, alive = mask[kept], step_tokens[kept], step_positions[kept], alive[kept]
    return answers


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def answer_logprobs(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]], temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of given answers under the model: (logprobs, mask, entropy), each (rows, longest answer).

    The language-model head runs on the answers' positions only. Padding has logprob 0, mask 0. Entropy, in nats, has
    no gradient.
    """
    tokens, mask = pad([p + a for p, a in zip(prompts, answers, strict=True)], 0)
    answer_tokens, answer_mask = pad(answers, 0)
    where = answer_places(prompts, answer_tokens.shape[1])
    kept = answer_mask.bool()
    rows = torch.arange(len(prompts)).unsqueeze(1).expand_as(where)[kept]
    logits = _logits_at(model, tokens, mask, rows, where[kept]).float() / temperature
    normaliser = logits.logsumexp(-1)
    logprobs = torch.zeros(answer_mask.shape)
    logprobs[kept] = logits.gather(-1, answer_tokens[kept].unsqueeze(-1)).squeeze(-1) - normaliser
    entropy = torch.zeros(answer_mask.shape)
    with torch.no_grad():
        entropy[kept] = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return logprobs, answer_mask.float(), entropy


def answer_places(prompts: list[list[int]], width: int) -> Tensor:
    """Where, in prompt + answer, the model stands before each of an answer's tokens, (rows, width)."""
    return torch.tensor([len(prompt) - 1 for prompt in prompts]).unsqueeze(1) + torch.arange(width)


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
        logprobs, _, _ = answer_logprobs(model, prompts[first : first + size], batch, temperature)
        found += [row[: len(answer)] for row, answer in zip(logprobs.tolist(), batch, strict=True)]
    return found


def _logits_at(model: PreTrainedModel, tokens: Tensor, mask: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """The model's logits at some places of a batch, (places, vocabulary).

    The places are cut out just before the language-model head and the model does the rest itself, because some
    architectures scale or cap their logits after it (Gemma 2, Cohere, Granite).
    """

    def cut(_: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor]:
        return (hidden[0][rows, places].unsqueeze(0),)

    with model.get_output_embeddings().register_forward_pre_hook(cut):
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits.squeeze(0)
