"""Agreement: against numbers worked out by hand, three libraries, and published figures of real annotators."""

import json
import os
from itertools import combinations
from pathlib import Path

import krippendorff
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from tasks.data.agreement import FIRST, MISSING, SECOND, TIE, agreement, agreement_by, labels, labels_of_matrix, pair_agreements, verdicts
from tasks.data.importers import import_file
from tasks.data.records import Comparison
from tasks.data.tables import comparison_table

REAL = os.environ.get("PREFLINE_REAL_DATA")


def matrices(annotators, lowest=FIRST):
    row = st.lists(st.integers(lowest, TIE), min_size=annotators, max_size=annotators)
    return st.lists(row, min_size=2, max_size=30).map(np.array)


# Figures --------------------------------------------------------------------------------------------------------------


def test_two_annotators_by_hand():
    # They agree on 3 of 4. The first says FIRST twice, SECOND twice; the other FIRST once, SECOND three times.
    found = labels_of_matrix(np.array([[0, 0], [0, 1], [1, 1], [1, 1]]))
    (pair,) = pair_agreements(found)
    assert (pair.first, pair.second, pair.items) == ("1", "2", 4)
    assert pair.raw.value == pytest.approx(0.75)
    assert pair.kappa.value == pytest.approx((0.75 - 0.5) / (1 - 0.5))  # by chance 0.5 * 0.25 + 0.5 * 0.75
    together = agreement(found)
    # Shares of all labels 3 / 8 and 5 / 8: by chance 34 / 64. Alpha without replacement: (3 * 2 + 5 * 4) / (8 * 7).
    assert together.fleiss.value == pytest.approx((0.75 - 34 / 64) / (1 - 34 / 64))
    assert together.alpha.value == pytest.approx(1 - 0.25 / (1 - 26 / 56))


def test_items_that_one_annotator_judged_take_no_part():
    with_lone_ones = np.array([[0, 0], [0, 1], [MISSING, 2], [1, 1], [1, MISSING], [1, 1]])
    found = agreement(labels_of_matrix(with_lone_ones))
    assert (found.items, found.judgements) == (4, 8)
    assert found.alpha.value == pytest.approx(1 - 0.25 / (1 - 26 / 56))


@given(matrices(2))
def test_cohens_kappa_is_that_of_scikit_learn(matrix):
    assume(len(set(matrix.ravel())) > 1)
    (pair,) = pair_agreements(labels_of_matrix(matrix))
    assert pair.kappa.value == pytest.approx(cohen_kappa_score(matrix[:, 0], matrix[:, 1]), abs=1e-9)


@given(matrices(4))
def test_fleiss_kappa_is_that_of_statsmodels(matrix):
    assume(len(set(matrix.ravel())) > 1)
    counts = np.array([[np.sum(row == kind) for kind in (FIRST, SECOND, TIE)] for row in matrix])
    assert agreement(labels_of_matrix(matrix)).fleiss.value == pytest.approx(fleiss_kappa(counts), abs=1e-9)


@given(matrices(4, lowest=MISSING))
def test_alpha_is_that_of_the_krippendorff_package_with_missing_labels(matrix):
    shared = (matrix != MISSING).sum(1) > 1
    assume(len(set(matrix[shared][matrix[shared] != MISSING])) > 1)
    ratings = np.where(matrix == MISSING, np.nan, matrix).T
    expected = krippendorff.alpha(ratings, level_of_measurement="nominal")
    assert agreement(labels_of_matrix(matrix)).alpha.value == pytest.approx(expected, abs=1e-9)


@given(matrices(4, lowest=MISSING))
def test_raw_agreement_is_the_mean_over_items_of_the_share_of_pairs_that_agree(matrix):
    shares = []
    for row in matrix:
        pairs = list(combinations([label for label in row if label != MISSING], 2))
        if pairs:
            shares.append(np.mean([a == b for a, b in pairs]))
    found = agreement(labels_of_matrix(matrix))
    assert found.items == len(shares)
    assert found.raw.value == (pytest.approx(np.mean(shares)) if shares else None)


@given(matrices(3, lowest=MISSING), st.randoms())
def test_order_of_rows_and_of_annotators_and_sides_change_nothing(matrix, random):
    rows, columns = list(range(len(matrix))), [0, 1, 2]
    random.shuffle(rows)
    random.shuffle(columns)
    before, after = (agreement(labels_of_matrix(m)) for m in (matrix, matrix[rows][:, columns]))
    turned = agreement(labels_of_matrix(np.where(matrix == MISSING, MISSING, np.take([SECOND, FIRST, TIE], matrix))))
    for one in (after, turned):
        for name in ("raw", "fleiss", "alpha"):
            assert getattr(one, name).value == pytest.approx(getattr(before, name).value)


def test_what_has_no_meaning_is_none():
    alike = agreement(labels_of_matrix(np.array([[0, 0], [0, 0]])))
    assert (alike.raw.value, alike.fleiss.value, alike.alpha.value) == (1.0, None, None)
    nothing = agreement(labels_of_matrix(np.array([[0, MISSING], [MISSING, 1]])))
    assert (nothing.items, nothing.judgements, nothing.raw.value) == (0, 0, None)
    assert pair_agreements(labels_of_matrix(np.array([[0, MISSING], [MISSING, 1]]))) == []
    assert agreement(labels_of_matrix(np.zeros((0, 2), int))).raw.value is None


def test_pairs_are_of_those_with_most_labels(monkeypatch):
    monkeypatch.setattr("tasks.data.agreement.MOST_ANNOTATORS", 2)
    matrix = np.array([[0, 0, 0], [1, 1, MISSING], [0, 1, MISSING]])
    assert [(pair.first, pair.second) for pair in pair_agreements(labels_of_matrix(matrix, ["a", "b", "c"]))] == [("a", "b")]


# Intervals ------------------------------------------------------------------------------------------------------------


def drawn(rng, items, agree, clusters=None):
    """Two annotators who say the same of an item with chance `agree`, FIRST and SECOND alike."""
    first = rng.integers(0, 2, items)
    return labels_of_matrix(np.column_stack([first, np.where(rng.random(items) < agree, first, 1 - first)]), clusters=clusters)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = {"raw": 0, "alpha": 0}
    for _ in range(200):
        found = agreement(drawn(rng, 150, 0.8))
        held["raw"] += found.raw.low <= 0.8 <= found.raw.high
        held["alpha"] += found.alpha.low <= 0.6 <= found.alpha.high  # 1 - 0.2 / 0.5
    # 190 of 200 are expected, with a standard deviation of 3.1
    assert 178 <= held["raw"] <= 199
    assert 178 <= held["alpha"] <= 199


def test_an_interval_is_as_wide_as_theory_says_with_more_items_than_are_resampled_one_by_one():
    found = agreement(drawn(np.random.default_rng(2), 40_000, 0.8)).raw
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 40_000), rel=0.12)


def test_items_of_one_cluster_are_one_piece_of_evidence():
    rng = np.random.default_rng(3)
    apart = drawn(rng, 400, 0.8)
    matrix = np.zeros((400, 2), int)
    matrix[apart.row, apart.annotator] = apart.label
    fourfold, clusters = np.repeat(matrix, 4, axis=0), np.repeat(np.arange(400), 4)
    width = [one.alpha.high - one.alpha.low for one in map(agreement, (apart, labels_of_matrix(fourfold, clusters=clusters)))]
    naive = agreement(labels_of_matrix(fourfold)).alpha
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert naive.high - naive.low == pytest.approx(width[0] / 2, rel=0.15)


def test_few_items_that_all_agree_are_no_certainty():
    found = agreement(labels_of_matrix(np.array([[0, 0], [1, 1], [0, 0], [1, 1]])))
    exact = 0.025 ** (1 / 4)  # the lower end of Clopper and Pearson for 4 out of 4
    assert (found.raw.low, found.raw.high) == (pytest.approx(exact), 1.0)
    assert found.alpha.low == pytest.approx(1 - (1 - exact) / (1 - 24 / 56))
    (pair,) = pair_agreements(labels_of_matrix(np.array([[0, 0], [1, 1], [0, 0], [1, 1]])))
    assert (pair.kappa.value, pair.kappa.low) == (1.0, pytest.approx(1 - (1 - exact) / 0.5))


def test_one_cluster_says_nothing_about_others():
    found = agreement(labels_of_matrix(np.array([[0, 0], [0, 1], [1, 1], [1, 1]]), clusters=[7, 7, 7, 7]))
    assert (found.raw.low, found.raw.value, found.raw.high) == (0.0, 0.75, 1.0)
    assert found.fleiss.low == pytest.approx(1 - 1 / (1 - 34 / 64))  # nobody agrees


@given(matrices(3, lowest=MISSING))
def test_intervals_hold_their_value(matrix):
    found = labels_of_matrix(matrix)
    together = agreement(found)
    figures = [together.raw, together.fleiss, together.alpha, *(one.kappa for one in pair_agreements(found))]
    assert all(one.low <= one.value <= one.high for one in figures if one.value is not None)


# Labels of a table ----------------------------------------------------------------------------------------------------


def table(*rows):
    """Rows of prompt, chosen, rejected, annotator, with tie, labels_by and tag where they are given."""
    columns = ("prompt", "chosen", "rejected", "annotator", "tie", "labels_by", "tag")
    filled = [(*row, *(False, None, None)[len(row) - 4 :]) for row in rows]
    frame = pd.DataFrame(filled, columns=columns).astype({"prompt": "uint64", "chosen": "uint64", "rejected": "uint64", "tie": bool})
    frame["group"] = frame["prompt"]
    return frame.astype({"annotator": "category", "labels_by": "category", "tag": "category"})


def test_an_item_is_a_prompt_and_two_answers_in_whatever_order():
    found = labels(table((1, 10, 20, "ann"), (1, 20, 10, "bob"), (2, 10, 20, "bob"), (1, 10, 30, "ann"), (1, 20, 10, "cem", True)))
    assert found.item.tolist() == [0, 0, 1, 2, 0]
    assert found.label.tolist() == [FIRST, SECOND, FIRST, FIRST, TIE]
    assert [found.names[place] for place in found.annotator] == ["ann", "bob", "bob", "ann", "cem"]


def test_ai_unknown_people_and_equal_answers_are_left_out():
    rows = [(1, 10, 20, "ann", False, "ai"), (1, 10, 20, None), (1, 10, 10, "ann"), (1, 10, 20, "bob", False, "people"), (1, 10, 20, "ann")]
    assert labels(table(*rows)).row.tolist() == [3, 4]


def test_a_second_verdict_is_compared_with_a_second_one():
    rows = [(1, 10, 20, "ann"), (1, 20, 10, "ann"), (1, 10, 20, "bob"), (1, 20, 10, "bob"), (1, 20, 10, "ann")]
    found = labels(table(*rows))
    assert found.item.tolist() == [0, 1, 0, 1, 2]
    assert agreement(found).raw.value == 1.0
    assert verdicts(table(*rows)).item.tolist() == [0] * 5


def test_agreement_by_slice(monkeypatch):
    rows = [(1, 10, 20, "ann", False, None, "x"), (1, 10, 20, "bob", False, None, "x"), (2, 10, 20, "ann", False, None, "y")]
    rows += [(2, 20, 10, "bob", False, None, "y"), (3, 10, 20, "ann", False, None, "z"), (4, 10, 20, "ann"), (4, 20, 10, "bob")]
    frame = table(*rows)
    found = agreement_by(labels(frame), frame["tag"])
    assert {name: (one.items, one.raw.value) for name, one in found.items()} == {"x": (1, 1.0), "y": (1, 0.0)}
    rows += [(5, 10, 20, "ann", False, None, "y"), (5, 10, 20, "bob", False, None, "y")]
    monkeypatch.setattr("tasks.data.agreement.MOST_SLICES", 1)
    assert list(agreement_by(labels(table(*rows)), table(*rows)["tag"])) == ["y"]


# Real annotators ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pandalm():
    if not REAL:
        pytest.skip("PREFLINE_REAL_DATA is not set: pandalm/testset-v1.json is needed")
    return Path(REAL) / "pandalm" / "testset-v1.json"


def test_published_figures_of_pandalm(pandalm):
    said = {1: FIRST, 2: SECOND, 0: TIE}
    matrix = np.array([[said[row[f"annotator{k}"]] for k in (1, 2, 3)] for row in json.loads(pandalm.read_text())])
    found = labels_of_matrix(matrix)
    assert [pair.kappa.value for pair in pair_agreements(found)] == pytest.approx([0.852, 0.879, 0.862], abs=1e-3)
    together = agreement(found)
    assert (together.items, together.fleiss.value, together.alpha.value) == (
        999,
        pytest.approx(0.864, abs=1e-3),
        pytest.approx(0.864, abs=1e-3),
    )


def test_pandalm_as_it_is_imported_agrees_as_its_rows_do(pandalm):
    found = labels(comparison_table(one for one in import_file(pandalm) if isinstance(one, Comparison)))
    rows = [row for row in json.loads(pandalm.read_text()) if str(row["response1"]).strip() and str(row["response2"]).strip()]
    by_annotator = [[row[f"annotator{k}"] for row in rows] for k in (1, 2, 3)]
    expected = [cohen_kappa_score(a, b) for a, b in combinations(by_annotator, 2)]
    together = agreement(found)
    assert (together.items, together.judgements) == (len(rows), 3 * len(rows)) == (945, 2835)
    # to 0.001: answers stand in the order of their codes here, and in the file's there
    assert [pair.kappa.value for pair in pair_agreements(found)] == pytest.approx(expected, abs=1e-3)
    assert together.alpha.value == pytest.approx(krippendorff.alpha(by_annotator, level_of_measurement="nominal"), abs=1e-3)
