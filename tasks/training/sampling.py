"""Sampling: a decoder that reads each prompt once, drops answers as they end and keeps each token's log-probability.

Used for rollouts, for evaluation and for `prefline ask`, so that all three see the same policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tasks.errors import PreflineError
from tasks.training.cache import cache_for
from tasks.training.models import left_padded, positions

BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed first when one is drawn."""


@dataclass(frozen=True)
class Sampling:
    """temperature: divides the logits; 0 takes the likeliest token. max_new_tokens: where an answer is cut.

    top_p: only the likeliest tokens that together have this probability are drawn (Holtzman et al. 2020).
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def noise(self, rows: int, seed: int) -> Tensor:
        """What chance decides, (rows, max_new_tokens), in [0, 1): a row's answer depends on its own numbers alone.

        So answers are the same however rows are batched, shared between processes, or leave early.
        """
        return torch.rand(rows, self.max_new_tokens, generator=torch.Generator().manual_seed(seed))


@dataclass
class Answer:
    """tokens: the answer's ids, its EOS included where it has one. logprobs: of each token when it was sampled, in nats.

    They are of the whole distribution at the temperature, never of the nucleus that top_p leaves, and so are those of
    tasks.training.logprobs: a ratio of new to old policy starts at 1, and no reference calls a token impossible. With
    top_p below 1 a mean of log-ratios over such answers is no longer the KL divergence of the two policies, but the
    mean over what the nucleus says.
    """

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


Sampler = Callable[[PreTrainedModel, list[list[int]], Sampling, int, Tensor], list[Answer]]
"""What `sample` is, and the server's stand-in for it: (model, prompts, sampling, eos, noise) -> an answer to each prompt."""


@torch.inference_mode()
def sample(model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, eos: int, noise: Tensor) -> list[Answer]:
    """One answer to each prompt (lists of token ids), in their order. noise: a row of `Sampling.noise` for each.

    Equal prompts are read once. Prompts are left-padded where their lengths differ. A row leaves the batch, and its keys
    and values the cache, once it has ended.
    """
    model.eval()
    steps, device = sampling.max_new_tokens, model.device
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    read, mask = (tensor.to(device) for tensor in left_padded([list(prompt) for prompt in place]))
    padded = not bool(mask.all())
    mask = F.pad(mask, (0, steps), value=1)
    cache = cache_for(model)
    length = read.shape[1]
    logits = _next_logits(model, read, mask[:, :length] if padded else None, cache)
    if len(place) < len(prompts):
        rows = torch.tensor([place[tuple(prompt)] for prompt in prompts])
        cache.reorder_cache(rows)
        logits, mask = logits[rows], mask[rows]

    noise = noise.to(device)
    tokens = torch.zeros(len(prompts), steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(prompts), steps, device=device)
    rows = torch.arange(len(prompts), device=device)
    for step in range(steps):
        chosen, found = _draw(logits, sampling, noise[rows, step])
        tokens[rows, step], logprobs[rows, step] = chosen, found
        going = (chosen != eos).cpu()
        if step == steps - 1 or not going.any():
            break
        if not going.all():
            kept = _closed_up(going)
            cache.reorder_cache(kept)
            chosen, mask, rows = chosen[kept], mask[kept], rows[kept]
        length += 1
        logits = _next_logits(model, chosen.unsqueeze(1), mask[:, :length] if padded else None, cache)
    return [_until(eos, *row) for row in zip(tokens[:, : step + 1].tolist(), logprobs[:, : step + 1].tolist(), strict=True)]


def _closed_up(going: Tensor) -> Tensor:
    """Which rows go on, (left,), given (rows,): they keep their places, and the last ones fill the gaps between them."""
    left = int(going.sum())
    kept = torch.arange(left)
    kept[~going[:left]] = left + going[left:].nonzero().squeeze(1)
    return kept


def _until(eos: int, tokens: list[int], logprobs: list[float]) -> Answer:
    """The answer up to its EOS, where the row was left."""
    stopped = eos in tokens
    length = tokens.index(eos) + 1 if stopped else len(tokens)
    return Answer(tokens[:length], logprobs[:length], stopped)


def _next_logits(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
    """Logits of the token that comes next, (rows, vocabulary).

    tokens: those not read yet, (rows, new). mask: (rows, all tokens), None where nothing is padding, because attention
    is faster without one.
    """
    places = None if mask is None else positions(mask)[:, -tokens.shape[1] :]
    read = model(input_ids=tokens, attention_mask=mask, position_ids=places, cache=cache, use_cache=True, logits_to_keep=1)
    return read.logits[:, -1]


def _draw(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A token a row and its log-probability, both (rows,). logits: (rows, vocabulary). noise: (rows,).

    Raises PreflineError where logits are not finite.
    """
    weights = F.pad(logits.float(), (0, -logits.shape[1] % BLOCK), value=-torch.inf)
    weights /= sampling.temperature or 1.0
    weights -= weights.amax(-1, keepdim=True)
    weights.exp_()
    total = weights.sum(-1)
    if not total.isfinite().all():
        raise PreflineError("The policy has come apart: its logits are not finite.", "Lower the learning rate that it was trained with.")
    if sampling.temperature == 0:
        chosen = weights.argmax(-1, keepdim=True)
    else:
        chosen = inverse(weights if sampling.top_p == 1 else nucleus(weights, sampling.top_p), noise)
    return chosen.squeeze(1), (weights.gather(1, chosen).squeeze(1) / total).log()


def inverse(weights: Tensor, noise: Tensor) -> Tensor:
    """The first token of each row whose cumulative weight passes noise * all weight, (rows, 1).

    weights: (rows, a multiple of BLOCK), fp32. noise: (rows,), in [0, 1). Cumulative sums in fp32 would be wrong by more
    than rare tokens' weights, and in fp64 over a large vocabulary they take longer than the model: so the block is found
    by the sums of blocks first, and then the token in it.
    """
    blocks = weights.view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64)
    ends = sums.cumsum(-1)
    target = noise.to(ends).unsqueeze(1) * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True)
    inside = blocks.take_along_dim(block.unsqueeze(-1), 1).squeeze(1).cumsum(-1, dtype=torch.float64)
    # Rounding may leave the share a hair below 0 or at 1, where tokens of no weight are
    share = (1 + (target - ends.gather(1, block)) / sums.gather(1, block)).clamp(0, 1 - 1e-9)
    return block * BLOCK + torch.searchsorted(inside, share * inside[:, -1:], right=True)


def nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights, (rows, vocabulary), with 0 for those outside the nucleus: the fewest likeliest that make up top_p.

    Tokens as likely as the last one in it belong to it too, so that which is drawn never depends on their order.
    """
    ordered = weights.sort(-1, descending=True).values
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    inside = before < top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    least = ordered.gather(-1, inside.sum(-1, keepdim=True) - 1)
    return weights.where(weights >= least, 0.0)
