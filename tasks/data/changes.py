"""What differs between two versions of the data: rows added, removed, judged otherwise or in another split, and the figures.

Rows are compared by codes: of either version's texts nothing is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tasks.data import prepare
from tasks.data.records import SPLITS, Comparison, Demonstration
from tasks.data.statistics import describe
from tasks.data.tables import comparison_table, demonstration_table, mark_near
from tasks.data.versions import Files, counts

NO_LABEL = 0


@dataclass(frozen=True)
class Moves:
    """What became of the rows of one kind. relabelled: the same prompt and answers with another label, or a tie or none any more.

    moved: rows by the splits that they left and came to, as in "train to test".
    """

    before: int
    after: int
    added: int
    removed: int
    relabelled: int
    moved: dict[str, int]


@dataclass(frozen=True)
class Figure:
    """A figure of the statistics; None where a version has none."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Changes:
    comparisons: Moves
    demonstrations: Moves
    figures: list[Figure]

    @property
    def none(self) -> bool:
        return not self.figures and not any(
            m.added or m.removed or m.relabelled or m.moved for m in (self.comparisons, self.demonstrations)
        )


def changes(before: Files, after: Files) -> Changes:
    """From one version to another. figures: those that differ."""
    old, new = _tables(before), _tables(after)
    figures = [dict(_flat(counts(files.paths) | describe(*tables))) for files, tables in ((before, old), (after, new))]
    moved = [Figure(name, figures[0].get(name), figures[1].get(name)) for name in figures[0] | figures[1]]
    return Changes(
        comparisons=_moves(_judged(old[0]), _judged(new[0])),
        demonstrations=_moves(_shown(old[1]), _shown(new[1])),
        figures=[figure for figure in moved if figure.before != figure.after],
    )


def _tables(files: Files) -> tuple[pd.DataFrame, pd.DataFrame]:
    comparisons, near = comparison_table(files.stream(Comparison)), files.paths.get(prepare.NEAR)
    mark_near(comparisons, pd.read_parquet(near) if near else None)
    return comparisons, demonstration_table(files.stream(Demonstration))


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    """Comparisons by what they are about and how they were judged, seen from the answer with the smaller code."""
    chosen, rejected = table["chosen"].to_numpy(), table["rejected"].to_numpy()
    pair = pd.DataFrame({"prompt": table["prompt"], "low": np.minimum(chosen, rejected), "high": np.maximum(chosen, rejected)})
    about = pd.util.hash_pandas_object(pair, index=False)
    by = pd.util.hash_pandas_object(pair.assign(annotator=table["annotator"].astype(object).fillna("")), index=False)
    return _rows(table, about, by, np.where(table["tie"], 2, (chosen > rejected).astype(int)))


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Demonstrations by what they are about; nobody judged anything."""
    about = pd.util.hash_pandas_object(table[["prompt", "answer"]], index=False)
    return _rows(table, about, about, np.full(len(table), NO_LABEL))


def _rows(table: pd.DataFrame, about: pd.Series, by: pd.Series, label: np.ndarray) -> pd.DataFrame:
    split = pd.Categorical(table["split"], categories=SPLITS).codes
    return pd.DataFrame({"id": table["id"], "about": about, "by": by, "label": label, "split": split})


def _moves(old: pd.DataFrame, new: pd.DataFrame) -> Moves:
    """Match rows of both versions, the surest first: by id, by who judged what and how, by who judged what, by what was judged."""
    relabelled, moved = 0, Counter[str]()
    left, right = old, new
    for keys in (["id", "about", "label"], ["id", "about"], ["by", "label"], ["by"], ["about"]):
        left_key, right_key = (rows.assign(nth=rows.groupby(keys).cumcount(), row=np.arange(len(rows))) for rows in (left, right))
        both = left_key.merge(right_key, on=[*keys, "nth"], suffixes=("_old", "_new"))
        if "label" not in keys:
            other = both["label_old"] != both["label_new"]
            if keys == ["about"]:  # another person's label: a change of it, but the same again is another row
                both = both[other]
            relabelled += int(other.sum())
        away = both[both["split_old"] != both["split_new"]]
        moved.update(f"{SPLITS[old]} to {SPLITS[new]}" for old, new in zip(away["split_old"], away["split_new"], strict=True))
        left, right = left.drop(left.index[both["row_old"]]), right.drop(right.index[both["row_new"]])
    return Moves(
        before=len(old),
        after=len(new),
        added=len(right),
        removed=len(left),
        relabelled=relabelled,
        moved=dict(moved),
    )


def _flat(body: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested mappings, named by the way to them."""
    if isinstance(body, dict):
        for key, value in body.items():
            yield from _flat(value, f"{name}, {key}" if name else str(key))
    elif isinstance(body, int | float) and not isinstance(body, bool):
        yield name, body
