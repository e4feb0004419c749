"""Supervised fine-tuning: the loss of what the assistant says in a demonstration, given all that stands before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data.encoding import Spoken, encode_turns
from tasks.data.records import Demonstration
from tasks.errors import PreflineError
from tasks.training.batches import microbatches
from tasks.training.end_to_end import cut_for
from tasks.training.logprobs import logprobs_at
from tasks.training.loop import Cut
from tasks.training.trees import Tree


@dataclass(frozen=True)
class SFTRow:
    """A demonstration, or a part of one, as token ids. Its weight is its number of trained tokens, so that each token counts alike.

    prompt: what stands before the first trained token. answer: the rest. trained: of each of the answer's tokens, is it
    the assistant's? None where all are.
    """

    prompt: list[int]
    answer: list[int]
    trained: list[bool] | None = None

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.answer

    @property
    def places(self) -> list[int]:
        """Where in tokens the trained ones stand."""
        begin = len(self.prompt)
        return [begin + place for place in range(len(self.answer)) if self.trained is None or self.trained[place]]

    @property
    def width(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def weight(self) -> float:
        return float(len(self.answer) if self.trained is None else sum(self.trained))


@dataclass(frozen=True)
class Pack:
    """Demonstrations side by side in one row of a batch; none of them sees another."""

    rows: list[SFTRow]

    @property
    def width(self) -> int:
        return sum(row.width for row in self.rows)

    @property
    def weight(self) -> float:
        return sum(row.weight for row in self.rows)


def sft_rows(
    demonstrations: list[Demonstration], tokenizer: PreTrainedTokenizerBase, max_tokens: int, every_turn: bool = False
) -> tuple[list[SFTRow], int]:
    """Rows that fit in max_tokens, and how many did not: an answer is never cut.

    every_turn: train what the assistant says in the prompt too, and not in the answer alone. A demonstration is one row, or
    several where the template writes its turns differently once more follows: each turn is trained as it is seen in use.
    Raises PreflineError, naming file and line, where there is nothing to learn in a demonstration, and where none of them fits.
    """
    rows = [row for demonstration in demonstrations for row in _rows(demonstration, tokenizer, every_turn)]
    kept = [row for row in rows if row.width <= max_tokens]
    if rows and not kept:
        shortest = min(row.width for row in rows)
        raise PreflineError(
            f"All {len(rows)} demonstrations are longer than max_tokens ({max_tokens}): the shortest has {shortest}.",
            f"Set max_tokens to at least {shortest}; answers are never cut.",
        )
    return kept, len(rows) - len(kept)


def _rows(demonstration: Demonstration, tokenizer: PreTrainedTokenizerBase, every_turn: bool) -> list[SFTRow]:
    conversation = demonstration.prompt + demonstration.answer
    first = 0 if every_turn else len(demonstration.prompt)
    said = [message["content"] for message in conversation[max(first, 1) :] if message["role"] == "assistant"]
    if not said or not all(text.strip() for text in said):
        what = "a turn of the assistant" if every_turn else "the demonstration's answer"
        place = f"{demonstration.source}, line {demonstration.source_id}"
        raise PreflineError(f"{place}: {what} is empty.", "Remove the row: there is nothing in it to learn.")
    return [_row(spoken) for spoken in encode_turns(tokenizer, conversation, first)]


def _row(spoken: Spoken) -> SFTRow:
    begin = spoken.turns[0].start
    learnt = {token for turn in spoken.turns for token in turn}
    mask = [token in learnt for token in range(begin, len(spoken.tokens))] if len(spoken.turns) > 1 else None
    return SFTRow(spoken.tokens[:begin], spoken.tokens[begin:], mask)


def sft_loss(model: nn.Module, rows: Sequence[SFTRow]) -> Tensor:
    """Sum over all trained tokens of -log p(token), in nats."""
    return pack_loss(model, [Pack([row]) for row in rows])


def pack_loss(model: nn.Module, packs: Sequence[Pack]) -> Tensor:
    """sft_loss of the packed rows. A pack of several needs a model that reads trees."""
    assert isinstance(model, PreTrainedModel)
    trees = [Tree([], [row.tokens for row in pack.rows]) for pack in packs]
    return -logprobs_at(model, trees, [row.places for pack in packs for row in pack.rows]).sum()


def packing(max_tokens: int) -> Cut[Pack]:
    """How to cut a step's rows into batches of full packs of at most max_tokens.

    Packed are the rows of one step, never those of several: which rows a step has, and so what is learnt, is the same
    with packing and without.
    """
    return partial(_packed, max_tokens=max_tokens)


def _packed(packs: Sequence[Pack], tokens_at_once: int, max_tokens: int) -> list[list[Pack]]:
    rows = [row for pack in packs for row in pack.rows]
    return microbatches(first_fit(rows, min(max_tokens, tokens_at_once)), tokens_at_once)


def first_fit(rows: Sequence[SFTRow], room: int) -> list[Pack]:
    """Packs of at most room tokens, or of one row: the widest row first, each into the first pack that has room for it."""
    packs: list[list[SFTRow]] = []
    widths: list[int] = []
    for row in sorted(rows, key=lambda row: -row.width):
        place = next((place for place, width in enumerate(widths) if width + row.width <= room), len(packs))
        if place == len(packs):
            packs.append([])
            widths.append(0)
        packs[place].append(row)
        widths[place] += row.width
    return [Pack(pack) for pack in packs]


@torch.inference_mode()
def negative_log_likelihood(model: PreTrainedModel, rows: list[SFTRow], tokens_at_once: int = 8192) -> float:
    """Sum over all trained tokens of -log p(token), in nats."""
    return sum(float(sft_loss(model, part)) for part in cut_for(model)(rows, tokens_at_once))


def perplexity(model: PreTrainedModel, rows: list[SFTRow], tokens_at_once: int = 8192) -> float:
    """exp of the mean negative log-likelihood of a trained token."""
    total = negative_log_likelihood(model.eval(), rows, tokens_at_once)
    return float(torch.tensor(total / sum(row.weight for row in rows)).exp())
