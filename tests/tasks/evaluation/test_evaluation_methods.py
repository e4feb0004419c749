"""Methods beside each other: rows from an evaluation, and the picture."""

import json

import numpy as np
import pytest
from PIL import Image

from tasks.evaluation.answers import write_answers
from tasks.evaluation.compared import BestOf, Compared, MethodRow, Reached, Step
from tasks.evaluation.findings import findings
from tasks.evaluation.methods import draw, method_row, panel, sft_row
from tasks.evaluation.result import Evaluation
from tasks.plotting import BLUE, new_figure
from tasks.stage import StageResult
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=50)


def reached(kl, gain, gold=None):
    gold_gain = None if gold is None else (gold, gold - 0.1, gold + 0.1)
    return Reached(kl=kl, judge=gain, judge_gain=(gain, gain - 0.2, gain + 0.3), gold=gold, gold_gain=gold_gain)


@pytest.fixture
def compared():
    """compared(gold) -> two methods, one of which failed, and best of 1 and 4."""

    def make(gold=None):
        path = (Step(round=0, kl=-0.01, judge_gain=0, gold_gain=gold and 0), Step(round=3, kl=1, judge_gain=0.5, gold_gain=gold and 0.25))
        methods = (MethodRow(method="ppo", reached=reached(4, 1.5, gold), path=path), MethodRow(method="dpo", error="No."))
        best = (BestOf(n=1, reached=reached(0, 0, gold and 0)), BestOf(n=4, reached=reached(0.64, 0.5, gold)))
        return Compared(run="r", prompts=9, sft=reached(0, 0, gold and 0), methods=methods, best_of_n=best)

    return make


def test_a_row_says_what_the_evaluation_does(make_evidence, make_rounds, tmp_path):
    evidence = make_evidence()
    found = findings(evidence, BOOTSTRAP)
    found.save(tmp_path)
    write_answers(tmp_path, evidence.rows)
    rounds = [
        {"round": one.number, "kl": one.kl, **{name: getattr(one.scores, name).tolist() for name in ("own", "judge", "gold")}}
        for one in make_rounds().rounds
    ]
    (tmp_path / "rounds.json").write_text(json.dumps({"chosen_round": 60, "validation_prompts": 120, "rounds": rounds}))
    result = StageResult(stage="x", key="k", path=tmp_path, digest="d", metrics={}, seconds=12.5)
    row = method_row("grpo", result, result, BOOTSTRAP)
    assert (row.method, row.seconds, row.error) == ("grpo", 12.5, "")
    over_sft = [evidence_row.judge_over_sft for evidence_row in evidence.rows]
    assert row.reached.win_rate.rate == pytest.approx((over_sft.count("win") + over_sft.count("tie") / 2) / len(over_sft))
    scores = {name: np.array([getattr(one, name).judge for one in evidence.rows]) for name in ("policy", "sft")}
    assert row.reached.judge == pytest.approx(scores["policy"].mean())
    assert row.reached.judge_gain[0] == pytest.approx((scores["policy"] - scores["sft"]).mean() / scores["sft"].std())
    first, last = rounds[0], rounds[-1]
    assert row.path[-1].gold_gain == pytest.approx((np.mean(last["gold"]) - np.mean(first["gold"])) / np.std(first["gold"]))
    assert [step.round for step in row.path] == list(range(0, 70, 10))
    assert sft_row(Evaluation.load(tmp_path)).judge == pytest.approx(scores["sft"].mean())


def test_the_panel_has_best_of_n_the_way_and_a_point_with_its_interval(compared, tmp_path):
    with new_figure(tmp_path / "x.png", 4, 3) as figure:
        axes = figure.add_subplot()
        panel(axes, compared(), by_gold=False)
        drawn = {line.get_label(): line for line in axes.lines}
        np.testing.assert_allclose(drawn["best of n"].get_xydata(), [[0, 0], [0.8, 0.5]])
        (way,) = [line for line in axes.lines if line.get_alpha() == 0.35]
        np.testing.assert_allclose(way.get_xydata(), [[0, 0], [1, 0.5]])
        (point,) = axes.containers
        assert (point.get_label(), point[0].get_color()) == ("ppo", BLUE)
        np.testing.assert_allclose(point[0].get_xydata(), [[2, 1.5]])
        np.testing.assert_allclose(point[2][0].get_segments()[0], [[2, 1.3], [2, 1.8]])


def test_gold_has_a_panel_beside_the_judge_where_it_is_known(compared, tmp_path):
    for gold, name in ((None, "judge.png"), (0.5, "both.png")):
        draw(compared(gold), tmp_path / name)
    assert Image.open(tmp_path / "both.png").width > 1.5 * Image.open(tmp_path / "judge.png").width


def test_the_document_is_read_as_it_was_written(compared, tmp_path):
    compared(0.5).save(tmp_path)
    assert Compared.load(tmp_path) == compared(0.5)
