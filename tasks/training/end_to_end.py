"""Rows read end to end, as one: attention alone needs to know where they begin.

All other layers treat every token by itself, so that they can have all of a batch's in one long row, however wide its rows are.
Attention gets them in blocks of rows of similar width, narrow enough that hardly anything is padded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tasks.training.batches import CALL, W, cheapest_runs, microbatches

NAME = "prefline_end_to_end"

ENOUGH = 2048
"""Tokens of a pass whose calls no longer count, on a CPU."""
LOGITS_AT_ONCE = 2**25
"""Numbers in one batch of logits (128 MB): with a large vocabulary these, and not the tokens, fill the memory."""

BLOCK = CALL // 16
"""What a block costs beside its tokens, in tokens: attention's share of a pass."""


@dataclass(frozen=True)
class Block:
    """Rows side by side in attention. mask: (rows, 1, width, width), True where a token looks; None for causal."""

    rows: int
    width: int
    mask: Tensor | None


def blocks_of(widths: list[int]) -> list[slice]:
    """Which rows, of these widths, make a block: neighbours, so that it pays to have rows of similar width side by side."""
    widest = 0

    def cost(first: int, end: int) -> int:
        nonlocal widest
        widest = max(widest, widths[first]) if first < end - 1 else widths[first]
        return (end - first) * widest + BLOCK

    ends = cheapest_runs(len(widths), cost)
    return [slice(first, end) for first, end in pairwise([0, *ends])]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    blocks: list[Block] | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: query, key, value (rows, heads, tokens, size); returns (rows, tokens, heads, size).

    blocks: what the one row is made of. Without them it is torch's attention and no more.
    """
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    sizes = [block.rows * block.width for block in blocks]
    parts = zip(*(part.transpose(1, 2).squeeze(0).split(sizes) for part in (query, key, value)), strict=True)
    said = []
    for block, of_block in zip(blocks, parts, strict=True):
        rows = (part.unflatten(0, (block.rows, block.width)).transpose(1, 2) for part in of_block)
        said.append(sdpa_attention_forward(module, *rows, block.mask, **more)[0].flatten(0, 1))
    return torch.cat(said).unsqueeze(0), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def reads_end_to_end(model: PreTrainedModel) -> bool:
    """Are rows to be laid end to end for this model?"""
    return model.config._attn_implementation == NAME


def cut_for(model: nn.Module) -> Callable[[Sequence[W], int], list[list[W]]]:
    """How to cut rows into batches for a model, or for the one within it: cut(rows, tokens_at_once).

    On a CPU longer passes than these are no faster, and only take memory.
    """
    body = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    if not reads_end_to_end(body):
        return microbatches
    most = min(ENOUGH, LOGITS_AT_ONCE // body.config.vocab_size) if body.device.type == "cpu" else sys.maxsize

    def cut(rows: Sequence[W], tokens_at_once: int) -> list[list[W]]:
        return microbatches(rows, min(tokens_at_once, most), end_to_end=True)

    return cut
