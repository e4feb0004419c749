"""The judges in the report: what is said of each, and what is wrong with it."""

from dataclasses import replace

import pytest

from tasks.evaluation.answers import Verdict
from tasks.evaluation.findings import findings
from tasks.evaluation.judging import faults, table, trust, wrong_with
from tasks.evaluation.report import render_markdown, render_report
from tasks.evaluation.result import JudgeReport, Spent, WinRate
from tasks.evaluation.words import headline
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=200)
WON = WinRate(rate=0.6, low=0.52, high=0.68, wins=60, losses=40, ties=20, sign_test=0.06)


def judge(name="language_model", **changes):
    """A language model without fault."""
    fields = {"about": "wise at judge.example", "prompts": 120, "win_rate": WON, "win_rate_over_sft": WON, "pairs": 200}
    fields |= {"accuracy": (0.8, 0.74, 0.86), "kappa": (0.6, 0.5, 0.7), "prefers_longer": 0.55, "people_prefer_longer": 0.5}
    fields |= {
        "prefers_first": 0.52,
        "orders_disagree": 0.1,
        "orders": 640,
        "spent": Spent(calls=600, cached=40, tokens=90000, seconds=61.5),
    }
    return JudgeReport(judge=name, **{**fields, **changes})


@pytest.fixture
def decided(make_evidence, make_rows):
    """decided(name, *reports) -> what is found where that judge decides."""

    def make(name, *reports, rows=None):
        return findings(replace(make_evidence(rows or make_rows()), judges=reports, decided_by=name), BOOTSTRAP)

    return make


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"accuracy": (0.53, 0.47, 0.59)}, ["is not surely better than drawing lots"]),
        ({"accuracy": None}, ["was not measured: there is no comparison that people decided"]),
        ({"unparsable": 64}, ["gave 64 of 640 verdicts that can't be read"]),
        ({"prefers_first": 0.75}, ["prefers what is shown first in 75.0\u00a0%"]),
        ({"prefers_first": 0.3}, ["prefers what is shown second in 70.0\u00a0%"]),
        ({"orders_disagree": 0.4}, ["says something else in 40.0\u00a0% when the order is turned"]),
        ({"prefers_longer": 0.9}, ["prefers the longer answer in 90.0\u00a0%, and people do in 50.0\u00a0%"]),
        ({"prefers_longer": 0.3}, ["prefers the shorter answer in 70.0\u00a0%, and people do in 50.0\u00a0%"]),
        ({"prompts": 0, "win_rate": None}, ["has judged none of these answers"]),
    ],
)
def test_what_is_wrong_is_said_in_words(changes, says):
    assert list(wrong_with(judge(**changes))) == says


def test_gold_is_beyond_doubt_and_people_are_the_measure():
    assert list(wrong_with(judge("gold", accuracy=(0.4, 0.3, 0.5)))) == []
    assert list(wrong_with(judge("people", accuracy=None, prefers_longer=None))) == []


def test_trust_is_in_the_judge_that_decided(decided):
    good = trust(decided("language_model", judge("reward_model"), judge()))
    assert (good.mood, "wise at judge.example" in good.body, "80.0" in good.body) == ("good", True, True)
    leaning = trust(decided("language_model", judge(prefers_first=0.9)))
    assert (leaning.mood, leaning.body.endswith("It prefers what is shown first in 90.0\u00a0%.")) == ("open", True)
    assert trust(decided("language_model", judge(accuracy=(0.55, 0.49, 0.61)))).mood == "bad"
    assert "independent" not in trust(decided("language_model", judge())).body
    assert trust(decided("reward_model", judge("reward_model"))).head.startswith("The judge agrees with people")


def test_trust_in_people(decided):
    alone = trust(decided("people", judge("people", about="1 annotator", accuracy=None, kappa=None)))
    assert (alone.mood, alone.head) == ("open", "People decided, each pair judged by one of them")
    together = judge("people", about="3 annotators", accuracy=None, agreement=(0.8, 0.7, 0.9), pairs=40)
    assert trust(decided("people", together)).mood == "good"
    assert trust(decided("people", together.model_copy(update={"kappa": (0.1, -0.1, 0.3)}))).mood == "bad"


def test_the_headline_names_who_prefers(decided):
    assert headline(decided("people", judge("people"))).body.startswith("People prefer the policy's answer")
    assert headline(decided("language_model", judge())).body.startswith("The language model that judges prefers")


def test_prompts_without_a_label_are_left_out_and_counted(decided, make_rows):
    rows = make_rows(prompts=60)
    for row in rows[:10]:
        row.judge = None
    found = decided("people", judge("people", prompts=50), rows=rows)
    assert (found.prompts, found.unjudged) == (50, 10)
    assert found.win_rate.wins + found.win_rate.losses + found.win_rate.ties == 50
    assert "50 of 60 prompts" in trust(found).body


def test_the_table_has_a_column_a_judge(decided):
    found = table(decided("language_model", judge("reward_model", orders=0, prefers_first=None), judge(unparsable=64)))
    assert found.columns == ["", "independent reward model", "language model (wise at judge.example), decides"]
    rows = {row[0]: row[1:] for row in found.rows}
    assert all(len(row) == 3 for row in found.rows)
    assert rows["accuracy"][1].replace("\u00a0", " ") == "80.0 % (74.0 to 86.0)"
    assert rows["of comparisons"] == ["200", "200"]
    assert [rows[name] for name in ("unreadable", "calls", "known before", "tokens", "seconds")] == [
        ["–", "64 of 640"],
        ["–", "600"],
        ["–", "40"],
        ["–", "90,000"],
        ["–", "61.5"],
    ]
    assert "calls" not in [row[0] for row in table(decided("reward_model", judge("reward_model", orders=0))).rows]
    assert table(decided("reward_model")) is None


def test_each_judges_faults_are_a_sentence(decided):
    found = decided("language_model", judge("reward_model"), judge(unparsable=64, orders_disagree=0.3))
    (said,) = faults(found)
    assert said.startswith(
        "language model (wise at judge.example): it gave 64 of 640 verdicts that can't be read; it says something else in 30"
    )


def test_page_and_markdown_show_them_and_believe_no_name(decided, make_rows, tmp_path):
    rows = make_rows()
    rows[0].verdicts = [Verdict("language_model", "tie", ("win", None))]
    found = decided("language_model", judge(about="<script>alert(1)</script> | x"), rows=rows)
    page, markdown = render_report(found, rows, tmp_path), render_markdown(found, rows)
    for text in (page, markdown):
        assert "A language model decides, asked in both orders" in text
        assert "<script>" not in text
        assert "80.0 % (74.0 to 86.0)" in text.replace("\u00a0", " ")
    line = next(line for line in markdown.splitlines() if "language model (" in line and line.startswith("|"))
    assert line.replace("\\|", "").count("|") == len(table(found).columns) + 1
