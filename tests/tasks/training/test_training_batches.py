"""Cutting rows into batches: every row once, within the budget, no cheaper cut; and told in their order."""

from dataclasses import dataclass
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.batches import CALL, in_batches, microbatches
from tasks.training.reward_model import Group
from tasks.training.trees import Tree


@dataclass(frozen=True)
class Length:
    width: int


def cost(batches):
    return sum(len(batch) * max(row.width for row in batch) + CALL for batch in batches)


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 300))
def test_microbatches_hold_every_row_once_and_keep_to_the_budget(lengths, budget):
    batches = microbatches([Length(n) for n in lengths], budget)
    assert sorted(row.width for batch in batches for row in batch) == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(row.width for row in batch) <= budget


@given(lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=9), budget=st.integers(500, 9000))
def test_no_cut_of_rows_sorted_by_width_is_cheaper(lengths, budget):
    rows = sorted((Length(n) for n in lengths), key=lambda row: -row.width)
    allowed = []
    for count in range(len(rows)):
        for cuts in combinations(range(1, len(rows)), count):
            ends = [0, *cuts, len(rows)]
            batches = [rows[first:end] for first, end in pairwise(ends)]
            if all(len(batch) == 1 or len(batch) * batch[0].width <= budget for batch in batches):
                allowed.append(cost(batches))
    assert cost(microbatches(rows, budget)) == min(allowed)


@pytest.mark.parametrize(
    ("lengths", "cut"),
    [
        ([100] * 6, [6]),  # nothing to gain
        ([1000, 1000, 10, 10], [2, 2]),  # 2 x 990 tokens of padding cost more than a call
        ([300, 290, 280], [3]),  # 30 tokens of padding do not
        ([], []),
    ],
)
def test_cuts_by_hand(lengths, cut):
    assert [len(batch) for batch in microbatches([Length(n) for n in lengths], 10**6)] == cut


@given(shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 30)), min_size=1, max_size=20), budget=st.integers(30, 400))
def test_microbatches_of_groups_keep_to_the_budget(shapes, budget):
    groups = [Group([5], [[7] * longest] * texts, [(0, 0)], together=bool(texts % 2)) for texts, longest in shapes]
    for batch in microbatches(groups, budget):
        assert len(batch) == 1 or len(batch) * max(group.width for group in batch) <= budget


def test_rows_are_told_in_their_own_order_however_they_are_batched():
    trees = [Tree([0] * n, [[n]]) for n in (3, 9, 1, 7)]
    read = []

    def widths(part):
        read.append([tree.width for tree in part])
        return [tree.width for tree in part]

    assert in_batches(trees, 1, widths) == [4, 10, 2, 8]
    assert read == [[10], [8], [4], [2]]
