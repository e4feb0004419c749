"""How well a model still knows held-out demonstrations: what optimising for a reward makes it forget.

Perplexity is of a token, and tokens of two tokenizers are of different sizes: a model whose tokens are longer has fewer
and harder ones to guess. Bits a byte of the text have the same meaning for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data.records import Demonstration
from tasks.training.logprobs import TOKENS_AT_ONCE
from tasks.training.sft import SFTRow, negative_log_likelihood, sft_rows

ANY_LENGTH = 2**31


@dataclass(frozen=True)
class Recital:
    """nats: -log p of all answers together, the end of each included. tokens: of the model's own, ends included. bytes: of UTF-8."""

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp of the nats a token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def recited(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demonstrations: list[Demonstration]) -> Recital | None:
    """None where there is no demonstration."""
    if not demonstrations:
        return None
    rows = _rows(demonstrations, tokenizer)
    said = sum(len(one.answer[-1]["content"].encode("utf-8", "surrogatepass")) for one in demonstrations)
    nats = negative_log_likelihood(model.eval(), rows, TOKENS_AT_ONCE)
    return Recital(nats, int(sum(row.weight for row in rows)), said)


def to_recite(
    demonstrations: list[Demonstration], tokenizers: Sequence[PreTrainedTokenizerBase], max_tokens: int, at_most: int, seed: int
) -> list[Demonstration]:
    """Of the demonstrations that fit in max_tokens of every tokenizer, at_most so many, drawn by the seed."""
    fitting = demonstrations
    for tokenizer in tokenizers:
        fitting = [one for one, row in zip(fitting, _rows(fitting, tokenizer), strict=True) if row.width <= max_tokens]
    drawn = np.random.default_rng(seed).permutation(len(fitting))[:at_most]
    return [fitting[place] for place in sorted(drawn)]


def _rows(demonstrations: list[Demonstration], tokenizer: PreTrainedTokenizerBase) -> list[SFTRow]:
    return sft_rows(demonstrations, tokenizer, ANY_LENGTH)[0]
