"""Cutting rows into batches of similar length that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

CALL = 4096 if torch.cuda.is_available() else 160
"""What one pass costs beside its tokens, in tokens (`peer_prefline.py sweep` of benchmarks/ measures it): smaller batches
waste less on padding, but each has its calls. A GPU waits for them; its figure is not measured yet."""

MOST = 256
"""Rows of a batch: no longer list of batches to look at from a row, and more rows would not make a pass cheaper."""


class Wide(Protocol):
    @property
    def width(self) -> int: ...


W = TypeVar("W", bound=Wide)


def microbatches(rows: Sequence[W], tokens_at_once: int) -> list[list[W]]:
    """Cut rows into the cheapest batches whose padded size is at most tokens_at_once (or one row), widest first.

    A batch costs its padded tokens plus CALL. Over rows sorted by width the cheapest cut is found exactly, by looking
    from every row at all the batches that may end with it.
    """
    ordered = sorted(rows, key=lambda row: -row.width)
    widths = [row.width for row in ordered]
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the cheapest cut of the first rows, and where its last batch begins
    for end in range(1, len(ordered) + 1):
        choices = []
        for first in range(end - 1, -1, -1):
            size = (end - first) * widths[first]
            if (size > tokens_at_once or end - first > MOST) and first < end - 1:
                break
            choices.append((best[first][0] + size + CALL, first))
        best.append(min(choices))
    batches: list[list[W]] = []
    end = len(ordered)
    while end:
        first = best[end][1]
        batches.append(ordered[first:end])
        end = first
    return batches[::-1]


@dataclass(frozen=True)
class Placed(Generic[W]):
    """A row, and its place among all."""

    place: int
    row: W

    @property
    def width(self) -> int:
        return self.row.width


def in_batches(rows: Sequence[W], tokens_at_once: int, read: Callable[[list[W]], Sequence[Any]]) -> list[Any]:
    """What read says of each row, in the rows' order, whatever their neighbours. read(batch): one thing for each row of it."""
    found: list[Any] = [None] * len(rows)
    for part in microbatches([Placed(place, row) for place, row in enumerate(rows)], tokens_at_once):
        for placed, said in zip(part, read([placed.row for placed in part]), strict=True):
            found[placed.place] = said
    return found
