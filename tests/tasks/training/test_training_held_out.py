"""What is told of a scorer on held-out comparisons, by hand, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tasks.data.records import Comparison, assistant, user
from tasks.errors import PreflineError
from tasks.training.held_out import Judged, by_size, check_accuracy, check_finite, held_out, judged, write
from tasks.training.reward_model import Group


def comparison(number, **details):
    return Comparison(
        id=f"c{number}",
        prompt=[user("How warm?")],
        chosen=[assistant("Warm.")],
        rejected=[assistant("Cold.")],
        source="march.jsonl",
        source_id=str(number),
        group_id=f"g{number}",
        **details,
    )


def row(chosen, rejected, number=0, lengths=(3, 3), annotator="ann", strength=None, tags=()):
    return Judged(f"c{number}", "march.jsonl", str(number), f"g{number}", annotator, strength, list(tags), chosen, rejected, *lengths)


THREE = math.log(3)
ROWS = [
    row(THREE, 0.0, 1, (5, 3), "ann", 1.0, ["price", "red"]),
    row(0.0, THREE, 1, (2, 3), "ann", 2.0, ["price"]),
    row(1.0, 1.0, 2, (4, 4), "bob", None, ["red"]),
    row(THREE + 1, 1.0, 3, (1, 9), None, 2.0),
]


def figures(parts):
    return {part.name: (part.comparisons, part.accuracy[0]) for part in parts}


def test_figures_by_hand():
    found = held_out(ROWS)
    assert (found.comparisons, found.prompts) == (4, 3)
    value, low, high = found.accuracy
    assert value == 2.5 / 4
    assert low < value < high
    assert found.longer == (1 + 0 + 0.5 + 0) / 4
    assert found.shorter == 1 - found.longer
    assert found.margin == pytest.approx(THREE / 4)
    # -log sigmoid(ln 3) = -log 3/4, twice; of -ln 3 = -log 1/4; of 0 = ln 2
    assert found.loss == pytest.approx((2 * -math.log(0.75) - math.log(0.25) + math.log(2)) / 4)
    assert figures(found.by_annotator) == {"ann": (2, 0.5), "bob": (1, 0.5), "unknown": (1, 1.0)}
    assert figures(found.by_slice) == {"price": (2, 0.5), "red": (2, 0.75)}
    assert figures(found.by_strength) == {"1": (1, 1.0), "2": (2, 0.5)}
    assert found.uncertainty is None
    # Two bins: stated 1/2, where the draw agrees half; and stated 3/4, where two of three agree
    assert [(b.stated, b.agreed, b.pairs) for b in found.bins] == [(0.5, 0.5, 1), (pytest.approx(0.75), pytest.approx(2 / 3), 3)]
    assert found.calibration_error == pytest.approx(3 / 4 * (3 / 4 - 2 / 3))
    # At the temperature of these pairs sigmoid(ln 3 / T) is 2/3: nothing is left of the error
    assert found.temperature == pytest.approx(THREE / math.log(2), abs=1e-3)
    assert found.calibration_error_at_temperature == pytest.approx(0, abs=1e-4)


def test_accuracy_by_margin_rises_where_margins_mean_something():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.normal(0, 2, 4000))
    right = rng.random(4000) < 1 / (1 + np.exp(-margins))
    parts = held_out([row(m if ok else -m, 0.0, number) for number, (m, ok) in enumerate(zip(margins, right, strict=True))]).by_margin
    assert [part.comparisons for part in parts] == [1000] * 4
    rates = [part.accuracy[0] for part in parts]
    assert rates == sorted(rates)
    assert rates[0] < 0.65 < 0.9 < rates[3]


def test_comparisons_of_one_prompt_are_not_more_evidence():
    once = [row(float(n % 3 > 0), 0.5, n) for n in range(60)]
    assert held_out(once * 5).accuracy == pytest.approx(held_out(once).accuracy)


def test_parts_by_size_hold_every_place_once_in_order():
    assert by_size({4: 2.0, 7: 1.0, 9: 2.0}) == [("1", [7]), ("2", [4, 9])]
    assert by_size({}) == []
    parts = by_size({place: float(place % 10) + place / 100 for place in range(22)})
    assert sorted(place for _, part in parts for place in part) == list(range(22))
    assert [len(part) for _, part in parts] == [6, 6, 5, 5]
    assert parts[0] == ("0 to 1.21", [0, 10, 20, 1, 11, 21])


GROUPS = [
    Group([3], [[4, 1], [5, 6, 1], [7, 1]], [(0, 1), (2, 1)], said=[comparison(1, annotator="ann", tags=["red"]), comparison(2)]),
    Group([3], [[4, 1], [5, 1]], [(1, 0)], said=[comparison(3, strength=2.0)]),
]


def test_rows_follow_the_groups():
    rows = judged(GROUPS, [1.0, 2.0, 3.0, 4.0, 5.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert [(one.id, one.chosen, one.rejected) for one in rows] == [("c1", 1, 2), ("c2", 3, 2), ("c3", 5, 4)]
    assert [(one.chosen_length, one.rejected_length) for one in rows] == [(2, 3), (2, 3), (2, 2)]
    assert [(one.chosen_deviation, one.rejected_deviation) for one in rows] == [(0.1, 0.2), (0.3, 0.2), (0.5, 0.4)]
    assert (rows[0].annotator, rows[0].tags, rows[2].strength, rows[2].group_id) == ("ann", ["red"], 2.0, "g3")
    assert held_out(rows).uncertainty == pytest.approx((0.1 + 0.2 + 0.3 + 0.2 + 0.5 + 0.4) / 6)
    assert judged(GROUPS, [0.0] * 5, None)[0].chosen_deviation is None


def test_what_is_written(tmp_path):
    found = held_out(ROWS, members=[0.5, 0.6])
    write(found, ROWS, tmp_path)
    body = json.loads((tmp_path / "scores.json").read_text())
    assert body["accuracy"] == list(found.accuracy)
    assert body["members"] == [0.5, 0.6]
    assert body["bins"][1]["pairs"] == 3
    assert [json.loads(line)["chosen"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == [one.chosen for one in ROWS]
    first = (tmp_path / "calibration.png").read_bytes()
    write(found, ROWS, tmp_path)
    assert (tmp_path / "calibration.png").read_bytes() == first  # a stage's digest is of it


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_named(bad):
    check_finite([1.0, 2.0, 3.0, 4.0, 5.0], GROUPS, "judge")
    with pytest.raises(PreflineError, match=rf"judge: the score of an answer is {bad} \(march.jsonl, line 2\)") as caught:
        check_finite([1.0, 2.0, bad, 4.0, 5.0], GROUPS, "judge")
    assert "judge.learning_rate" in caught.value.advice
    with pytest.raises(PreflineError, match="line 3"):
        check_finite([1.0, 2.0, 3.0, 4.0, bad], GROUPS, "judge")


def test_a_model_at_chance_is_refused_with_all_that_matters(tmp_path):
    coin = held_out([row(float(n % 2), 0.5, n, (4, 3) if n % 4 else (3, 4)) for n in range(200)])
    with pytest.raises(PreflineError) as caught:
        check_accuracy(coin, 0.5, "reward_model", tmp_path)
    for said in ("reward model at chance: accuracy 0.500", "200 held-out comparisons of 200 prompts", "longer", "0.750", "0.250"):
        assert said in caught.value.what
    for said in ("more comparisons", "reward_model.epochs", "reward_model.learning_rate", "reward_model.min_accuracy=0", str(tmp_path)):
        assert said in caught.value.advice
    check_accuracy(coin, 0, "reward_model", tmp_path)


def test_it_is_the_lower_end_of_the_interval_that_counts(tmp_path):
    found = replace(held_out(ROWS), accuracy=(0.62, 0.51, 0.7))
    check_accuracy(found, 0.5, "judge", tmp_path)
    with pytest.raises(PreflineError, match=r"judge at chance"):
        check_accuracy(replace(found, accuracy=(0.62, 0.5, 0.7)), 0.5, "judge", tmp_path)
    with pytest.raises(PreflineError, match=r"judge not surely above 0.6"):
        check_accuracy(found, 0.6, "judge", tmp_path)
