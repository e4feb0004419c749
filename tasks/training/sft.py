"""Supervised fine-tuning: the loss of a demonstration's answer, given its prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data.encoding import encode_answer, encode_prompt
from tasks.data.records import Demonstration
from tasks.errors import PreflineError
from tasks.training.batches import microbatches
from tasks.training.logprobs import tree_logprobs
from tasks.training.trees import Tree


@dataclass(frozen=True)
class SFTRow:
    """A demonstration as token ids. Its weight is its number of trained tokens, so that each token counts alike."""

    prompt: list[int]
    answer: list[int]

    @property
    def width(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def weight(self) -> float:
        return float(len(self.answer))


def sft_rows(demonstrations: list[Demonstration], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> tuple[list[SFTRow], int]:
    """Rows that fit in max_tokens, and how many did not (an answer is never cut in silence).

    Raises PreflineError, naming the demonstration, where an answer has no text.
    """
    rows: list[SFTRow] = []
    for demonstration in demonstrations:
        answer = encode_answer(tokenizer, demonstration.prompt, demonstration.answer)
        if len(answer) < 2:
            raise PreflineError(
                f"{demonstration.source}, line {demonstration.source_id}: the demonstration's answer is empty.",
                "Remove the row: there is nothing in it to learn.",
            )
        row = SFTRow(encode_prompt(tokenizer, demonstration.prompt), answer)
        if row.width <= max_tokens:
            rows.append(row)
    return rows, len(demonstrations) - len(rows)


def sft_loss(model: nn.Module, rows: list[SFTRow]) -> Tensor:
    """Sum over all answer tokens of -log p(token), in nats."""
    assert isinstance(model, PreTrainedModel)
    logprobs, _ = tree_logprobs(model, [Tree(row.prompt, [row.answer]) for row in rows], temperature=1.0)
    return -logprobs.sum()


@torch.inference_mode()
def perplexity(model: PreTrainedModel, rows: list[SFTRow], tokens_at_once: int = 8192) -> float:
    """exp of the mean negative log-likelihood of an answer token."""
    model.eval()
    total = sum(float(sft_loss(model, part)) for part in microbatches(rows, tokens_at_once))
    return float(torch.tensor(total / sum(row.weight for row in rows)).exp())
