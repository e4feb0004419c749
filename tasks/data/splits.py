"""Which split a record goes to: by a hash of its group, so that it stays there as data grows."""

from __future__ import annotations

import hashlib

from tasks.config import SplitConfig
from tasks.data.records import Comparison, Demonstration, Split, digest

HELD_OUT: tuple[Split, ...] = ("test", "validation", "judge")
"""From the one that must be kept furthest from training."""


def split_of(group: str, shares: SplitConfig) -> Split:
    """The split of a group, by a hash of its name alone: other groups may come and go."""
    at = int(hashlib.sha256(f"split {group}".encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13
    for split in HELD_OUT:
        at -= getattr(shares, split)
        if at < 0:
            return split
    return "train"


class Groups:
    """Which records stay together: those of one group and, whatever their groups, those of one prompt.

    A union-find over group ids. The oldest group of a union stands for it, so that its split stays as data is appended.
    """

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._age: dict[str, int] = {}
        self._by_prompt: dict[str, str] = {}
        self._given: dict[str, set[str]] = {}

    def add(self, record: Comparison | Demonstration) -> None:
        group = record.group_id
        self._parent.setdefault(group, group)
        self._age.setdefault(group, len(self._age))
        self._join(group, self._by_prompt.setdefault(digest(record.prompt), group))
        if record.split:
            self._given.setdefault(group, set()).add(record.split)

    def name(self, group: str) -> str:
        """The group that stands for all that are joined to this one."""
        while self._parent[group] != group:
            self._parent[group] = group = self._parent[self._parent[group]]
        return group

    def _join(self, one: str, other: str) -> None:
        older, younger = sorted((self.name(one), self.name(other)), key=self._age.__getitem__)
        self._parent[younger] = older

    def splits(self, shares: SplitConfig) -> dict[str, Split]:
        """By group, the split of those of its records that came without one: that of the others, else by hash.

        Where the others disagree, the split that is held out furthest; the contract then refuses the group.
        """
        given: dict[str, set[str]] = {}
        for group, splits in self._given.items():
            given.setdefault(self.name(group), set()).update(splits)
        found: dict[str, Split] = {}
        for group in self._parent:
            name = self.name(group)
            held_out = next((split for split in HELD_OUT if split in given.get(name, ())), None)
            found[group] = held_out or ("train" if name in given else split_of(name, shares))
        return found
