"""Sampling: a decoder with a cache that shrinks as answers end and keeps each token's log-probability.

Used for PPO's rollouts, for evaluation and for `prefline ask`, so that all three see the same policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tasks.training.losses import token_logprobs
from tasks.training.models import pad, positions


@dataclass(frozen=True)
class Sampling:
    """temperature: divides the logits; 0 takes the likeliest token. max_new_tokens: where an answer is cut."""

    max_new_tokens: int
    temperature: float = 1.0

    def noise(self, rows: int, seed: int) -> Tensor:
        """What chance decides, (rows, max_new_tokens), in [0, 1): a row's answer depends on its own numbers alone.

        So answers are the same however rows are batched, shared between processes, or leave early.
        """
        return torch.rand(rows, self.max_new_tokens, generator=torch.Generator().manual_seed(seed))


@dataclass
class Answer:
    """tokens: the answer's ids, its EOS included where it has one. logprobs: of each token when it was sampled, in nats."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@torch.inference_mode()
def sample(model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, eos: int, noise: Tensor) -> list[Answer]:
    """One answer to each prompt (lists of token ids), in their order. noise: a row of `Sampling.noise` for each.

    Prompts are left-padded. A row leaves the batch, and its keys and values the cache, once it has ended; the mask and
    the positions go with it.
    """
    model.eval()
    tokens, mask = pad(prompts, 0, side="left")
    answers = [Answer([], [], False) for _ in prompts]
    alive = torch.arange(len(prompts))
    cache = DynamicCache(config=model.config)
    step_tokens, step_positions = tokens, positions(mask)
    for step in range(sampling.max_new_tokens):
        logits = model(
            input_ids=step_tokens, attention_mask=mask, position_ids=step_positions, cache=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        chosen = _choose(logits, sampling.temperature, noise[alive, step])
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


def _choose(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """A token a row, (rows,): the first whose cumulative probability passes the row's noise."""
    if temperature == 0:
        return logits.argmax(-1)
    reached = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    # Rounding leaves the last sum a hair beside 1: scaled by it, noise below 1 always ends at a token of some probability
    return torch.searchsorted(reached, noise.to(reached).unsqueeze(1) * reached[:, -1:], right=True).squeeze(1)
