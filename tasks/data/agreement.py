"""How far annotators agree: raw agreement, Cohen's and Fleiss' kappa, Krippendorff's alpha, each with its interval.

Pure functions of labels: who called which of two answers better. Slices and pairs of annotators are subsets of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FIRST, SECOND, TIE = 0, 1, 2
MISSING = -1
KINDS = 3
RESAMPLES = 1000
CONFIDENCE = 0.95
BLOCKS = 1000
"""Where there are more clusters, so many random bundles of them are resampled: it costs 2 % of an interval's width and
makes the time independent of the number of rows."""
MOST_ANNOTATORS = 20
"""That are compared two by two, those with most labels: a table of more is read by nobody."""
MOST_SLICES = 100

Array = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """Who said what about which item, one row a label.

    item, annotator: places, counted from 0. label: FIRST, SECOND or TIE. cluster: rows of one cluster are drawn together.
    row: where the label stands in the frame or matrix that it comes from. names: of the annotators.
    """

    item: Places
    annotator: Places
    label: Places
    cluster: NDArray[np.uint64]
    row: Places
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.item)

    @property
    def items(self) -> int:
        return int(self.item.max()) + 1 if len(self) else 0

    def where(self, kept: NDArray[np.bool_]) -> Labels:
        """The rows where kept is true, their items counted anew."""
        item = pd.factorize(self.item[kept])[0]
        return Labels(item, self.annotator[kept], self.label[kept], self.cluster[kept], self.row[kept], self.names)

    def once(self) -> Labels:
        """The same with one label of an annotator on an item: what they said when they judged it again is another item."""
        again = pd.Series(self.item).groupby(self.item * max(len(self.names), 1) + self.annotator).cumcount().to_numpy()
        item = pd.factorize(mixed(self.item.astype(np.uint64), again.astype(np.uint64)))[0]
        return replace(self, item=item)

    def shared(self) -> Labels:
        """Labels of items that two or more annotators judged: only they say anything about agreement."""
        return self.where(np.bincount(self.item, minlength=self.items)[self.item] > 1)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval. value is None where it has no meaning: nothing shared, or all labels alike."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Agreement:
    """items: that two or more annotators judged. judgements: of those items.

    raw: the chance that two annotators say the same of an item. fleiss, alpha: the same without what chance would give.
    """

    items: int
    judgements: int
    raw: Estimate
    fleiss: Estimate
    alpha: Estimate


@dataclass(frozen=True)
class PairAgreement:
    """Two annotators on the items that both judged."""

    first: str
    second: str
    items: int
    raw: Estimate
    kappa: Estimate


def labels_of_matrix(matrix: NDArray[np.int64], names: Sequence[str] | None = None, clusters: Sequence[int] | None = None) -> Labels:
    """Labels of a matrix (items, annotators) of FIRST, SECOND, TIE and MISSING. clusters: one an item; None for each by itself."""
    item, annotator = np.nonzero(matrix != MISSING)
    cluster = np.arange(len(matrix)) if clusters is None else np.asarray(clusters)
    named = tuple(names) if names else tuple(str(place + 1) for place in range(matrix.shape[1]))
    found = pd.factorize(item)[0]
    return Labels(found, annotator, matrix[item, annotator].astype(np.int64), cluster[item].astype(np.uint64), item, named)


def labels(frame: pd.DataFrame) -> Labels:
    """The verdicts of a table of comparisons, ready to be compared: second verdicts on an item with second ones."""
    return verdicts(frame).once()


def verdicts(frame: pd.DataFrame) -> Labels:
    """What named people said in a table of comparisons, repetitions and all; an AI and nobody known are left out.

    An item is a prompt with two answers in whatever order; FIRST is the answer with the smaller code. Items of one group
    (of near-equal prompts) are one cluster.
    """
    chosen, rejected = (frame[name].to_numpy(np.uint64) for name in ("chosen", "rejected"))
    annotator = frame["annotator"].astype("category").cat
    codes = annotator.codes.to_numpy().astype(np.int64)
    row = np.flatnonzero((codes >= 0) & (chosen != rejected) & by_people(frame))
    chosen, rejected = chosen[row], rejected[row]
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    item = pd.factorize(mixed(frame["prompt"].to_numpy(np.uint64)[row], low, high))[0]
    label = np.where(frame["tie"].to_numpy(bool)[row], TIE, np.where(chosen == low, FIRST, SECOND)).astype(np.int64)
    names = tuple(str(name) for name in annotator.categories)
    return Labels(item, codes[row], label, frame["group"].to_numpy(np.uint64)[row], row, names)


def by_people(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows that no AI labelled. Where a source does not say who judged, people did."""
    return (frame["labels_by"].astype(object) != "ai").to_numpy(bool)


def mixed(*codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One code for several, in their order. The codes are hashes already, so that a sum of odd multiples parts them."""
    odd = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
    total = np.zeros(len(codes[0]), np.uint64)
    for code, factor in zip(codes, odd, strict=False):
        total += code * np.uint64(factor)
        total ^= total >> np.uint64(29)
    return total


# All annotators together ----------------------------------------------------------------------------------------------


def agreement(labels: Labels) -> Agreement:
    """Agreement of all annotators on the items that two or more of them judged.

    Fleiss 1971, each item counting alike (p_c is the mean over items of their share of c, after Gwet 2014 where items
    have different numbers of labels). Krippendorff 2011, nominal, each pairable label counting alike.
    """
    of = labels.shared()
    counts = np.bincount(of.item * KINDS + of.label, minlength=of.items * KINDS).reshape(-1, KINDS).astype(float)
    size = counts.sum(1)
    pairs = (counts * (counts - 1)).sum(1)
    per_item = np.column_stack([np.ones(len(size)), pairs / (size * (size - 1)), counts / size[:, None], size, counts, pairs / (size - 1)])
    cluster = np.zeros(of.items, np.uint64)
    cluster[of.item] = of.cluster
    blocks = _blocks(per_item, cluster)
    return Agreement(of.items, len(of), _estimate(_raw, blocks), _estimate(_fleiss, blocks), _estimate(_alpha, blocks))


def agreement_by(labels: Labels, slices: pd.Series) -> dict[str, Agreement]:
    """Agreement within each slice, of the MOST_SLICES with most shared labels.

    slices: the slice of each row of the frame that labels come from, missing for none.
    """
    of = labels.shared()
    slice_of = slices.astype("category").iloc[of.row].cat
    codes = slice_of.codes.to_numpy()
    sizes = np.bincount(codes[codes >= 0], minlength=len(slice_of.categories))
    largest = np.sort(np.argsort(-sizes, kind="stable")[:MOST_SLICES])
    found = {str(slice_of.categories[code]): agreement(of.where(codes == code)) for code in largest if sizes[code]}
    return {name: one for name, one in found.items() if one.items}


def _raw(sums: Array) -> tuple[Array, Array]:
    return 1 - sums[..., 1] / sums[..., 0], np.ones(sums.shape[:-1])


def _fleiss(sums: Array) -> tuple[Array, Array]:
    shares = sums[..., 2:5] / sums[..., :1]
    return 1 - sums[..., 1] / sums[..., 0], 1 - (shares**2).sum(-1)


def _alpha(sums: Array) -> tuple[Array, Array]:
    number, of_kind = sums[..., 5], sums[..., 6:9]
    return 1 - sums[..., 9] / number, 1 - (of_kind * (of_kind - 1)).sum(-1) / (number * (number - 1))


# Two by two -----------------------------------------------------------------------------------------------------------


def pair_agreements(labels: Labels) -> list[PairAgreement]:
    """Cohen's kappa (1960) of every two annotators who share an item, of the MOST_ANNOTATORS with most labels; by names."""
    busy = np.argsort(-np.bincount(labels.annotator, minlength=len(labels.names)), kind="stable")[:MOST_ANNOTATORS]
    of = labels.where(np.isin(labels.annotator, busy)).shared()
    order = np.lexsort((of.annotator, of.item))
    item, who, label, cluster = of.item[order], of.annotator[order], of.label[order], of.cluster[order]
    # Rows of one item stand together: those that lie one apart, two apart and so on are its pairs.
    pairs, cells, clusters = [], [], []
    for apart in range(1, int(np.bincount(item).max(initial=1))):
        left = np.flatnonzero(item[:-apart] == item[apart:])
        right = left + apart
        pairs.append(who[left] * len(labels.names) + who[right])
        cells.append(label[left] * KINDS + label[right])
        clusters.append(cluster[left])
    if not pairs:
        return []
    pair, cell, cluster = np.concatenate(pairs), np.concatenate(cells), np.concatenate(clusters)
    order = np.argsort(pair, kind="stable")
    pair, cell, cluster = pair[order], cell[order], cluster[order]
    bounds = [*np.flatnonzero(np.diff(pair, prepend=-1)), len(pair)]
    found = []
    for start, end in pairwise(bounds):
        blocks = _blocks(np.eye(KINDS * KINDS)[cell[start:end]], cluster[start:end])
        first, second = (labels.names[place] for place in divmod(int(pair[start]), len(labels.names)))
        found.append(PairAgreement(first, second, int(end - start), _estimate(_differ, blocks), _estimate(_cohen, blocks)))
    return sorted(found, key=lambda one: (one.first, one.second))


def _differ(cells: Array) -> tuple[Array, Array]:
    table = cells.reshape(*cells.shape[:-1], KINDS, KINDS)
    return 1 - np.trace(table, axis1=-2, axis2=-1) / table.sum((-2, -1)), np.ones(cells.shape[:-1])


def _cohen(cells: Array) -> tuple[Array, Array]:
    table = cells.reshape(*cells.shape[:-1], KINDS, KINDS)
    by_chance = (table.sum(-1) * table.sum(-2)).sum(-1) / table.sum((-2, -1)) ** 2
    return _differ(cells)[0], 1 - by_chance


# Intervals ------------------------------------------------------------------------------------------------------------


def _blocks(values: Array, cluster: NDArray[np.uint64]) -> Array:
    """Sums of the rows of values over clusters, or over random bundles of them where they are too many."""
    place, names = pd.factorize(cluster)
    if len(names) > BLOCKS:  # multiplied, because a cluster's code may be a running number
        place = ((cluster * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)).astype(np.int64) % BLOCKS
    number = min(len(names), BLOCKS)
    return np.column_stack([np.bincount(place, column, number) for column in values.T])


def _estimate(parts: Callable[[Array], tuple[Array, Array]], blocks: Array) -> Estimate:
    """1 - observed / expected disagreement, with its percentile bootstrap interval over the blocks' sums.

    Of a single cluster nothing is known about others: the interval is all that there can be.
    A bootstrap of labels that all agree has no width, however few they are. So the interval is never surer than the exact
    one of n agreements out of n clusters, whose lower end is (alpha / 2)^(1 / n) (Clopper and Pearson 1934).
    """
    if not len(blocks):
        return Estimate(None)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed, expected = parts(blocks.sum(0))
        drawn_observed, drawn_expected = parts(_draws()[:, : len(blocks)] @ blocks)
        drawn = 1 - drawn_observed / drawn_expected
    if expected < 1e-12:
        return Estimate(None)
    value = float(1 - observed / expected)
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)) if len(drawn) else (value, value)
    if len(blocks) == 1:
        low, high = 1 - 1 / expected, 1.0
    elif observed < 1e-12:
        low = 1 - (1 - tail ** (1 / len(blocks))) / expected
    return Estimate(value, min(float(low), value), max(float(high), value))


@lru_cache(maxsize=1)
def _draws() -> Array:
    """How often each block is drawn in each resample, shape (RESAMPLES, BLOCKS); the first columns serve fewer blocks.

    Poisson(1) each, which for ratios of sums does what drawing with replacement does (Chamandy et al. 2012).
    """
    return np.random.default_rng(0).poisson(1.0, (RESAMPLES, BLOCKS)).astype(float)
