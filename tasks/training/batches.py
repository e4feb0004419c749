"""Cutting rows into batches of similar length that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
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


def microbatches(rows: Sequence[W], tokens_at_once: int, end_to_end: bool = False) -> list[list[W]]:
    """Cut rows into the cheapest batches of at most tokens_at_once (or one row), widest first.

    A batch costs its tokens plus CALL. Its rows are padded to the widest, or laid end_to_end: then only their sum counts.
    """
    ordered = sorted(rows, key=lambda row: -row.width)
    widths = [row.width for row in ordered]
    sums = [0, *accumulate(widths)]

    def cost(first: int, end: int) -> int | None:
        size = sums[end] - sums[first] if end_to_end else (end - first) * widths[first]
        fits = size <= tokens_at_once and end - first <= MOST
        return size + CALL if fits or end - first == 1 else None

    ends = cheapest_runs(len(ordered), cost)
    return [ordered[first:end] for first, end in pairwise([0, *ends])]


def cheapest_runs(count: int, cost: Callable[[int, int], int | None]) -> list[int]:
    """Where to cut a line of things into neighbours, so that the sum of costs is least: the ends of the runs.

    cost(first, end): of the run from first up to end; None where it, and any that begins earlier, is not allowed. The cheapest
    is found exactly, by looking from every thing at all the runs that may end with it, the shortest first.
    """
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the cheapest cut of the first things, and where its last run begins
    for end in range(1, count + 1):
        choices = []
        for first in range(end - 1, -1, -1):
            price = cost(first, end)
            if price is None:
                break
            choices.append((best[first][0] + price, first))
        best.append(min(choices))
    ends = []
    end = count
    while end:
        ends.append(end)
        end = best[end][1]
    return ends[::-1]


@dataclass(frozen=True)
class Placed(Generic[W]):
    """A row, and its place among all."""

    place: int
    row: W

    @property
    def width(self) -> int:
        return self.row.width


def in_batches(
    rows: Sequence[W],
    tokens_at_once: int,
    read: Callable[[list[W]], Sequence[Any]],
    cut: Callable[[Sequence[Placed[W]], int], list[list[Placed[W]]]] = microbatches,
) -> list[Any]:
    """What read says of each row, in the rows' order, whatever their neighbours. read(batch): one thing for each row of it."""
    found: list[Any] = [None] * len(rows)
    for part in cut([Placed(place, row) for place, row in enumerate(rows)], tokens_at_once):
        for placed, said in zip(part, read([placed.row for placed in part]), strict=True):
            found[placed.place] = said
    return found
