"""Which records stay together, and which split a group goes to: by a hash of its name, with a hand on the scales for each slice.

Everything is settled in order of arrival and looks only back, so that what is appended moves nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tasks.config import SplitConfig
from tasks.data.records import SPLITS, Split

HELD_OUT: tuple[Split, ...] = ("test", "validation", "judge")
"""From the one that must be kept furthest from training."""
TOLERANCE = 0.02
"""Share of a slice by which a split may exceed its own share, besides one group, before the hash is overruled."""


def split_of(group: int, shares: SplitConfig) -> Split:
    """The split of a group (its code) by a hash of its name alone: other groups may come and go."""
    at = int(hashlib.sha256(f"split {group:016x}".encode()).hexdigest()[:13], 16) / 16**13
    for split in HELD_OUT:
        at -= getattr(shares, split)
        if at < 0:
            return split
    return "train"


class Scales:
    """Splits of the groups of one slice, given out one after the other.

    The hash decides unless its split holds as much of the slice as it may; then the split that lacks most gets the group.
    So no split ever holds more than (share + TOLERANCE) * groups + 1 of a slice's groups: a small slice has its shares
    nearly exactly, while in a large one the hash is seldom overruled, and a group that is taken away moves few others.
    """

    def __init__(self, shares: SplitConfig) -> None:
        self._shares = shares
        self._share: dict[str, float] = {split: getattr(shares, split) for split in HELD_OUT}
        self._share["train"] = 1 - sum(self._share.values())
        self._held: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self._groups = 0

    def next(self, group: int, given: str | None = None) -> str:
        """The split of the next group; one that came with a split keeps it and counts."""
        self._groups += 1
        split = given or split_of(group, self._shares)
        if not given and self._held[split] + 1 > (self._share[split] + TOLERANCE) * self._groups + 1:
            split = max(SPLITS, key=lambda name: self._share[name] * self._groups - self._held[name])
        self._held[split] += 1
        return split


def join(groups: Sequence[int], prompts: Sequence[int], leaders: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which records stay together: those of one group and, whatever their groups, those of one prompt or of prompts alike.

    groups, prompts: of each record in order of arrival, numbered as they first appear. leaders: of each prompt, an earlier
    one that it is like, or itself. Returns the group that each record belonged to when it came, and the one it belongs to in
    the end: the oldest of those that were joined, so that the younger ones move.
    """
    parent = list(range(max(groups, default=-1) + 1))
    of_prompt = [-1] * len(leaders)

    def oldest(group: int) -> int:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    arrived = np.zeros(len(groups), dtype=np.int64)
    for row, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
        if of_prompt[prompt] < 0:
            of_prompt[prompt] = group
        for other in (of_prompt[prompt], of_prompt[leaders[prompt]]):
            older, younger = sorted((oldest(group), oldest(other)))
            parent[younger] = older
        arrived[row] = oldest(group)
    return arrived, np.array([oldest(group) for group in groups], dtype=np.int64)


def assign(records: pd.DataFrame, shares: SplitConfig) -> np.ndarray:
    """The split of every record. A split that came with a record stays; others of its group follow it.

    records: in order of arrival, with comparison (or demonstration), code (of its own group's name), arrived and group
    (numbers, as `join` found them), slice and given (names, or missing). Where given splits of a group disagree, the others
    follow the one that is held out furthest, and the contract then refuses the group.
    """
    given = records["given"].astype(object).where(records["given"].notna(), None).to_numpy()
    group = records["group"].to_numpy()
    decided = np.full(int(records["arrived"].max()) + 1 if len(records) else 0, None, dtype=object)
    scales: dict[tuple[bool, int], Scales] = {}
    new = np.unique(records["arrived"], return_index=True)[1]
    new.sort()
    first = (records[name].to_numpy()[new].tolist() for name in ("comparison", "code", "arrived"))
    for comparison, code, number, kind, told in zip(*first, records["slice"].cat.codes.to_numpy()[new], given[new], strict=True):
        decided[number] = scales.setdefault((comparison, kind), Scales(shares)).next(code, told)
    for split in ("train", *reversed(HELD_OUT)):
        decided[group[given == split]] = split
    return np.where(given == None, decided[group], given)  # noqa: E711 - element by element
