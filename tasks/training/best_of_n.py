"""Best of n: several answers to a prompt, of which the reward model picks one. What it gains, and what that costs in KL.

Optimisation without training: the yardstick for methods that train (Gao et al. 2022), and what rejection sampling learns from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.data.encoding import decode
from tasks.errors import PreflineError
from tasks.training.logprobs import TOKENS_AT_ONCE
from tasks.training.loop import seed_of
from tasks.training.models import score_texts
from tasks.training.onlooker import Onlooker
from tasks.training.sampling import Answer, Sampling, sample


@dataclass(frozen=True)
class BestOfN:
    """The answer that the reward model likes best of n. kl: nats a sequence, from the model that was sampled.

    own, judge, gold: expected score of that answer, one a prompt, so that intervals over prompts can be drawn; n = 1 is
    the model itself. gold: None without a truth.
    """

    n: int
    kl: float
    own: list[float]
    judge: list[float]
    gold: list[float] | None


def best_of_n_kl(n: int) -> float:
    """KL(best of n || the model sampled), in nats a sequence: ln n - (n - 1) / n.

    Exact where no two answers are alike, an upper bound where some are (Beirami et al. 2024). Source: Stiennon et al.
    2020, appendix G.3.
    """
    return math.log(n) - (n - 1) / n


def rank_weights(answers: int, n: int) -> np.ndarray:
    """Probability that the best of n out of so many answers, drawn without repeats, is the one of each rank, worst first.

    C(i - 1, n - 1) / C(N, n) at rank i, (answers,), by the ratio of neighbours from n / N at the top: no factorials.
    """
    ranks = np.arange(answers, 1, -1, dtype=np.float64)
    falling = np.maximum(ranks - n, 0) / (ranks - 1)  # of rank i - 1 to rank i
    return (n / answers * np.cumprod([1.0, *falling]))[::-1]


def expected_best(proxy: np.ndarray, values: np.ndarray, n: int) -> float:
    """Mean value of the answer that the proxy likes best of n, over all choices of n among the answers.

    proxy, values: (answers,). Where the proxy likes answers equally, each is picked as often. Unbiased for n fresh
    answers. Source: Nakano et al. 2021, appendix I, for values that are not the proxy's own.
    """
    _, rank = np.unique(proxy, return_inverse=True)
    weights = rank_weights(len(proxy), n)
    shared = np.bincount(np.sort(rank), weights) / np.bincount(rank)
    return float(shared[rank] @ values)


def best_of_n_curve(onlooker: Onlooker, answers: int, ns: Sequence[int], seed: int) -> list[BestOfN]:
    """What the best of each n would score on the validation prompts, estimated from so many answers to each of them.

    Sampled from the SFT model, picked by the reward model. answers should be well above the largest n, or the
    estimate is one of few draws. Raises PreflineError where it is below.
    """
    if answers < max(ns):
        raise PreflineError(
            f"The best of {max(ns)} can't be told from {answers} answers a prompt.",
            f"Sample at least {max(ns)}, better four times as many.",
        )
    own, judge, gold = (np.zeros((len(onlooker.tokens), answers)) for _ in range(3))
    known = True
    for batch in batches_of_answers(onlooker.tokens, answers, onlooker.sampling, TOKENS_AT_ONCE):
        with onlooker.reference() as reference:
            found = answer_all(reference, batch, onlooker.sampling, onlooker.tokenizer.eos_token_id, seed)
        places = [wanted.place for wanted in batch], [wanted.number for wanted in batch]
        texts = [wanted.prompt + answer.tokens for wanted, answer in zip(batch, found, strict=True)]
        own[places], judge[places] = score_texts(onlooker.reward_model, texts), score_texts(onlooker.judge, texts)
        truth = onlooker.gold(places[0], [decode(onlooker.tokenizer, answer.tokens) for answer in found])
        known = truth is not None
        gold[places] = truth or 0.0
    return [
        BestOfN(
            n,
            best_of_n_kl(n),
            [expected_best(row, row, n) for row in own],
            [expected_best(row, values, n) for row, values in zip(own, judge, strict=True)],
            [expected_best(row, values, n) for row, values in zip(own, gold, strict=True)] if known else None,
        )
        for n in ns
    ]


@dataclass(frozen=True)
class Wanted:
    """An answer to sample: number, of those to the prompt at that place. longest: tokens that it may have."""

    place: int
    number: int
    prompt: list[int]
    longest: int

    @property
    def width(self) -> int:
        return len(self.prompt) + self.longest


def batches_of_answers(prompts: list[list[int]], answers: int, sampling: Sampling, tokens_at_once: int) -> list[list[Wanted]]:
    """All answers wanted to all prompts, in batches that fit in memory; those to one prompt are neighbours, in order."""
    longest = sampling.max_new_tokens
    widest_first = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    wanted = [Wanted(place, number, prompts[place], longest) for place in widest_first for number in range(answers)]
    batches: list[list[Wanted]] = []
    while wanted:
        rows = max(1, tokens_at_once // wanted[0].width)
        batches.append(wanted[:rows])
        wanted = wanted[rows:]
    return batches


def answer_all(model: PreTrainedModel, batch: list[Wanted], sampling: Sampling, eos: int, seed: int) -> list[Answer]:
    """The answers wanted. Each has chance of its own, so that it is the same in whatever batch it is sampled."""
    if not batch:
        return []
    noise = torch.cat([sampling.noise(1, seed_of(seed_of(seed, wanted.place), wanted.number)) for wanted in batch])
    return sample(model, [wanted.prompt for wanted in batch], sampling, eos, noise)
