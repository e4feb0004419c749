"""What a data set is like, in figures, from the tables that the contract is checked on: for people and for reports."""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist
from typing import Any

import pandas as pd

from tasks.data.records import SPLITS
from tasks.data.tables import BETWEEN_TAGS

UNKNOWN = "unknown"
"""Stands for what a source does not name."""


def describe(comparisons: pd.DataFrame, demonstrations: pd.DataFrame) -> dict[str, Any]:
    """Figures of both tables. Shares are of the rows where the thing is known; None where nobody looked."""
    return {
        "comparisons": _common(comparisons, ("prompt", "chosen", "rejected")) | _judged(comparisons),
        "demonstrations": _common(demonstrations, ("prompt", "answer")),
    }


def wilson(successes: float, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a share; from 0 to 1 where there are no rows."""
    if not rows:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def _judged(table: pd.DataFrame) -> dict[str, Any]:
    first, seconds = table["chosen_first"].dropna(), table["seconds"].dropna()
    return {
        "annotators": _counts(table["annotator"]),
        "labels_by": _counts(table["labels_by"]),
        "rankings": int(table.loc[table["ranking"] != 0, "ranking"].nunique()),
        "ties": int(table["tie"].sum()),
        "longer_chosen": _mean(table["longer_chosen"]),
        "chosen_first": {"known": len(first), "share": _mean(first)},
        "seconds": {"known": len(seconds), "median": round(float(seconds.median()), 2) if len(seconds) else None},
        "duplicates": int(table["duplicate"].sum()),
        "near_duplicates": _marked(table, "near_duplicate"),
        "near_other_group": _marked(table, "near_other_group"),
    }


def _common(table: pd.DataFrame, parts: tuple[str, ...]) -> dict[str, Any]:
    splits = table["split"].value_counts()
    tags: Counter[str] = Counter()
    for joined, rows in table["tags"].value_counts().items():
        for tag in str(joined).split(BETWEEN_TAGS):
            tags[tag] += int(rows)
    return {
        "rows": len(table),
        "groups": int(table["group"].nunique()),
        "prompts": int(table["prompt"].nunique()),
        "splits": {name: int(splits.get(name, 0)) for name in SPLITS},
        "words": {part: _lengths(table[f"{part}_words"]) for part in parts} if len(table) else {},
        "sources": _counts(table["source"]),
        "tags": _most_first(tags),
        "languages": _counts(table["language"]),
    }


def _lengths(words: pd.Series) -> dict[str, float]:
    return {"mean": round(float(words.mean()), 2), "median": float(words.median()), "longest": int(words.max())}


def _counts(names: pd.Series) -> dict[str, int]:
    counts = Counter({str(name): int(rows) for name, rows in names.value_counts().items() if rows})
    if without := int(names.isna().sum()):
        counts[UNKNOWN] += without
    return _most_first(counts)


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _mean(values: pd.Series) -> float | None:
    mean = values.mean()
    return None if math.isnan(mean) else round(float(mean), 4)


def _marked(table: pd.DataFrame, flag: str) -> int | None:
    """None where nobody looked."""
    return int(table[flag].sum()) if flag in table and table[flag].notna().all() else None
