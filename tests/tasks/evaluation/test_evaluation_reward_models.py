"""The reward model's section: its sentence, its tables, on the page and in Markdown, and what a file of an earlier version lacks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tasks.evaluation import reward_models
from tasks.evaluation.findings import findings
from tasks.evaluation.report import render_markdown, render_report
from tasks.evaluation.result import BenchPart, Evaluation, RewardBench, Scorers
from tasks.training.held_out import Judged, held_out
from tasks.training.intervals import Bootstrap
from tasks.training.scorecard import HeldOut

BOOTSTRAP = Bootstrap(resamples=100)


def card(share=0.8, annotators=("ann", "bob"), members=None, prompts=120):
    rng = np.random.default_rng(0)
    rows = [
        Judged(
            id=str(place),
            source="shop",
            source_id=str(place),
            group_id=f"prompt {place}",
            annotator=annotators[place % len(annotators)],
            strength=float(place % 2),
            tags=["price" if place % 3 else "<b>refuse|"],
            chosen=float(rng.normal() + (3 if right else -3)),
            rejected=0.0,
            chosen_length=5 + place % 3,
            rejected_length=6,
            chosen_deviation=0.25 if members else None,
            rejected_deviation=0.25 if members else None,
        )
        for place, right in enumerate(rng.random(prompts) < share)
    ]
    return held_out(rows, members)


def part(name, pairs=10, accuracy=(0.6, 0.4, 0.8), **left_out):
    counts = {"too_long": 0, "undecided": 0, "unusable": 0} | left_out
    return BenchPart(name=name, pairs=pairs, reward_model=accuracy, judge=None, longer=0.5 if accuracy else None, **counts)


def bench(names=("llmbar-natural", "mine"), sections=("Chat Hard", "mine")):
    return RewardBench(categories=[part(n) for n in names], sections=[part(n) for n in sections], overall=part("all", 20, too_long=4))


def test_the_sentence_says_what_the_accuracy_rests_on():
    good = reward_models.trust_in_reward_model(Scorers(reward_model=card()))
    assert good.mood == "good"
    assert "120 validation comparisons of 120 prompts" in good.body
    assert "ensemble" not in good.body
    bad = reward_models.trust_in_reward_model(Scorers(reward_model=card(0.5, members=[0.4, 0.6])))
    assert bad.mood == "bad"
    assert "ensemble of 2" in bad.body
    assert "differ by 0.25" in bad.body
    assert reward_models.trust_in_reward_model(Scorers()) is None


def test_tables_put_the_judge_beside_the_reward_model_by_name():
    own = card(annotators=[f"person {number:02}" for number in range(15)])
    judge = replace(card(0.7), by_slice=card(0.7).by_slice[:1])
    made = {table.title: table for table in reward_models.tables(Scorers(reward_model=own, judge=judge, reward_bench=bench()), 0.9)}
    slices = made["Reward model by slice"]
    assert slices.columns == ["slice", "comparisons", "reward model", "judge"]
    assert [row[0] for row in slices.rows] == ["price", "<b>refuse|"]
    assert [row[3] == "–" for row in slices.rows] == [False, True]
    assert made["Reward model by margin"].columns == ["margin", "comparisons", "reward model"]
    assert len(made["Reward model by annotator"].rows) == reward_models.MOST_ROWS
    assert made["Reward model by annotator"].note == "3 more are in scores.json."
    files = made["Reward model on benchmark files"]
    assert [row[:3] for row in files.rows] == [["llmbar-natural", "10", "0"], ["mine", "10", "0"]]
    assert files.note == "90\u00a0% intervals, over prompts. Left out: 4 longer than max_tokens."
    assert [row[0] for row in made["By section"].rows] == ["Chat Hard", "mine", "mean over sections"]


def test_categories_that_are_their_own_sections_are_told_once():
    made = reward_models.tables(Scorers(reward_bench=bench(("a", "b"), ("a", "b"))), 0.95)
    assert [table.title for table in made] == ["Reward model on benchmark files"]
    assert made[0].rows[-1][0] == "mean over categories"


def test_a_category_without_a_pair_has_no_accuracy():
    [table] = reward_models.tables(
        Scorers(reward_bench=RewardBench(categories=[part("a", 0, None)], sections=[part("a", 0, None)], overall=part("all", 0, None))),
        0.95,
    )
    assert table.rows[0][3:] == ["–", "–", "–"]


@pytest.fixture
def found(make_evidence, make_rows):
    def make(scorers):
        rows = make_rows()
        return findings(replace(make_evidence(rows), scorers=scorers), BOOTSTRAP), rows

    return make


def test_the_section_stands_on_the_page_and_in_markdown(found, tmp_path):
    evaluation, rows = found(Scorers(reward_model=card(), judge=card(0.7), reward_bench=bench()))
    page, text = render_report(evaluation, rows, tmp_path), render_markdown(evaluation, rows)
    titles = [table.title for table in reward_models.tables(evaluation.scorers, 0.95)]
    assert len(titles) == 6
    assert all(f"<summary>{title}</summary>" in page and f"### {title}\n" in text for title in titles)
    assert "&lt;b&gt;refuse|" in page
    assert "<b>refuse" not in page
    lines = text[text.index("## The reward model") : text.index("## Slices")].splitlines()
    tables = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert set(tables) == {4, 5, 7}
    assert "\n\n\n\n" not in text


def test_without_measurements_there_is_no_section(found, tmp_path):
    evaluation, rows = found(Scorers())
    assert "The reward model" not in render_report(evaluation, rows, tmp_path)
    assert "The reward model" not in render_markdown(evaluation, rows)


def test_evaluation_json_holds_it_and_older_ones_are_read(found, tmp_path):
    evaluation, _ = found(Scorers(reward_model=card(members=[0.5, 0.75]), reward_bench=bench()))
    evaluation.save(tmp_path)
    assert Evaluation.load(tmp_path) == evaluation
    body = json.loads((tmp_path / "evaluation.json").read_text())
    assert body["scorers"]["reward_model"]["members"] == [0.5, 0.75]
    del body["scorers"]
    (tmp_path / "evaluation.json").write_text(json.dumps(body))
    assert Evaluation.load(tmp_path).scorers == Scorers()


def test_what_a_stage_wrote_is_read_back(tmp_path):
    assert HeldOut.load(tmp_path) is None
    card().save(tmp_path)
    assert HeldOut.load(tmp_path) == card()
