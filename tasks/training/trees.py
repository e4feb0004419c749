"""A prompt and the answers that branch off it, laid out as one row, so that the prompt is read once.

An answer sees the prompt and itself, never its siblings, and counts its positions from the prompt's end: every hidden
state is the one that prompt + answer alone would have. A tree of one answer is plain text, and needs no mask at all:
padding is on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from tasks.training.end_to_end import NAME as END_TO_END
from tasks.training.end_to_end import Block, blocks_of, reads_end_to_end


@dataclass(frozen=True)
class Tree:
    """Token ids of a prompt and of its answers, none of them empty."""

    prompt: list[int]
    answers: list[list[int]]

    @property
    def width(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))

    def apart(self) -> list[Tree]:
        """The same as one tree an answer."""
        return [Tree(self.prompt, [answer]) for answer in self.answers]


def trees_of(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Tree]:
    """Prompts with an answer to each, as a tree each."""
    return [Tree(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)]


@dataclass(frozen=True)
class Layout:
    """Trees as a batch. tokens: (rows, width). attention: (rows, 1, width, width), None for causal; positions likewise.

    Where rows are read end to end, it is one row, and blocks says of what.
    Of the answers, in order: row, (answers,); targets, their tokens, and mask, True where they have one, both (answers,
    longest); places, where in its row a token stands; before, where its row stands before it, both (answers, longest).
    """

    tokens: Tensor
    positions: Tensor | None
    attention: Tensor | None
    row: Tensor
    targets: Tensor
    mask: Tensor
    places: Tensor
    before: Tensor
    blocks: list[Block] | None = None

    @property
    def last(self) -> Tensor:
        """Where each answer's last token stands, (answers,)."""
        return self.places.gather(1, self.mask.sum(1, keepdim=True) - 1).squeeze(1)

    def arguments(self) -> dict[str, Any]:
        """What a transformer is called with."""
        told = {"input_ids": self.tokens, "attention_mask": self.attention, "position_ids": self.positions, "use_cache": False}
        return told if self.blocks is None else told | {"blocks": self.blocks}


def lay_out(trees: Sequence[Tree], device: torch.device | str = "cpu") -> Layout:
    """A row a tree: the prompt, then its answers one after the other; padded on the right."""
    width = max(tree.width for tree in trees)
    answers = [answer for tree in trees for answer in tree.answers]
    longest = max(map(len, answers))
    branching = any(len(tree.answers) > 1 for tree in trees)
    tokens = np.zeros((len(trees), width), dtype=np.int64)
    positions = np.zeros_like(tokens)
    branch = np.full((len(trees), width), -1, dtype=np.int64)  # which answer a token belongs to; the prompt is everybody's
    row, places, before, targets = (np.zeros((len(answers), *shape), dtype=np.int64) for shape in ((), (longest,), (longest,), (longest,)))
    lengths = np.array([len(answer) for answer in answers])
    number = 0
    for place, tree in enumerate(trees):
        begin = len(tree.prompt)
        tokens[place, :begin] = tree.prompt
        positions[place, :begin] = np.arange(begin)
        for answer in tree.answers:
            end = begin + len(answer)
            tokens[place, begin:end] = answer
            positions[place, begin:end] = len(tree.prompt) + np.arange(len(answer))
            branch[place, begin:end] = number
            row[number] = place
            targets[number, : len(answer)] = answer
            places[number, : len(answer)] = np.arange(begin, end)
            before[number, : len(answer)] = np.arange(begin - 1, end - 1)
            before[number, 0] = len(tree.prompt) - 1
            begin = end
            number += 1
        branch[place, begin:] = -2 if branching else 0
    mask = np.arange(longest) < lengths[:, None]
    attention = None
    if branching:
        of = torch.from_numpy(branch).to(device)
        earlier = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        attention = (((of[:, :, None] == of[:, None, :]) | (of[:, None, :] == -1)) & earlier).unsqueeze(1)
    on = [torch.from_numpy(array).to(device) for array in (tokens, positions, row, targets, mask, places, before)]
    return Layout(on[0], on[1] if branching else None, attention, on[2], on[3], on[4], on[5], on[6])


def lay_out_for(model: PreTrainedModel, trees: Sequence[Tree]) -> Layout:
    """Trees as the model reads them: a row each, or all in one row, a block of them behind the other."""
    if not reads_end_to_end(model):
        return lay_out(trees, model.device)
    return _joined([lay_out(trees[block], model.device) for block in blocks_of([tree.width for tree in trees])])


def _joined(parts: list[Layout]) -> Layout:
    blocks = [Block(len(part.tokens), part.tokens.shape[1], part.attention) for part in parts]
    begins = accumulate((block.rows * block.width for block in blocks), initial=0)
    longest = max(part.targets.shape[1] for part in parts)
    positions, targets, mask, places, before = [], [], [], [], []
    for part, block, begin in zip(parts, blocks, begins, strict=False):
        counted = torch.arange(block.width, device=part.tokens.device).repeat(block.rows)
        positions.append(counted if part.positions is None else part.positions.flatten())
        wider, moved = (0, longest - part.targets.shape[1]), (begin + part.row * block.width).unsqueeze(1)
        targets.append(nn.functional.pad(part.targets, wider))
        mask.append(nn.functional.pad(part.mask, wider))
        places.append(nn.functional.pad(part.places + moved, wider))
        before.append(nn.functional.pad(part.before + moved, wider))
    tokens = torch.cat([part.tokens.flatten() for part in parts])
    return Layout(
        tokens=tokens.unsqueeze(0),
        positions=torch.cat(positions).unsqueeze(0),
        attention=_PREPARED.to(tokens.device),
        row=torch.zeros(sum(len(part.row) for part in parts), dtype=torch.long, device=tokens.device),
        targets=torch.cat(targets),
        mask=torch.cat(mask),
        places=torch.cat(places),
        before=torch.cat(before),
        blocks=blocks,
    )


_PREPARED = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
"""What transformers takes for a mask that is ready, so that it makes none of its own, of all tokens by all."""


def read_end_to_end(model: PreTrainedModel) -> None:
    """From now on rows are laid end to end for this model, if that gives each of them the hidden states that it has alone.

    As with `reads_trees` it is the model that is asked. model: with or without its head. One with a window keeps its rows apart: they are
    cut by masks that transformers makes.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or _windows(config) or config.vocab_size < 8:
        return
    words = torch.arange(PROBE).remainder(config.vocab_size).tolist()
    trees = [Tree(words, [words[::-1]]), Tree(words[2:5], [words[:PROBE]]), Tree([], [words[3:9]])]

    with _being_asked(model):
        apart = _answer_states(model, trees)
        model.set_attn_implementation(END_TO_END)
        try:
            same = _alike(apart, _answer_states(model, trees))
        except (TypeError, ValueError, RuntimeError):  # it does not hand on what it does not know, or cannot do with such a mask
            same = False
    if not same:
        model.set_attn_implementation("sdpa")


@contextmanager
def _being_asked(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model reads as it does in use, and learns nothing."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _answer_states(model: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """Hidden states of the answers' tokens, in order, (tokens, width). model: with or without its head."""
    layout = lay_out_for(model, trees)
    hidden = model.base_model(**layout.arguments()).last_hidden_state
    return hidden[layout.row.unsqueeze(1), layout.places][layout.mask].float()


def _alike(states: Tensor, others: Tensor) -> bool:
    return torch.allclose(states, others, atol=1e-3, rtol=1e-3)


def _windows(config: PreTrainedConfig) -> list[int]:
    """How far the model's tokens see, where that is not as far as they like."""
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return [size for size in found if size]


PROBE = 16
"""Tokens of each text that a model is asked about."""


def reads_trees(model: PreTrainedModel, longest: int) -> bool:
    """Does the model give each branch of a tree the hidden states of its text alone?

    Asked of the model itself, because linear attention and positions by distance fail in ways of their own. A window
    narrower than the longest text, which a tree has no way to tell, is read off the configuration. model: the transformer
    without its head. longest: tokens of a text.
    """
    if model.config.vocab_size < 8 or any(size < longest for size in _windows(model.config)):
        return False
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(model.config.vocab_size, (3, PROBE), generator=generator).tolist()
    tree = Tree(words[0], [words[1], words[2]])
    with _being_asked(model):
        apart = _answer_states(model, tree.apart())
        try:
            return _alike(apart, _answer_states(model, [tree]))
        except ValueError:
            return False  # positions by distance (ALiBi) are counted from a mask of two dimensions
