"""People as judge: questions that tell nothing, and labels that are found again by what the texts say."""

import csv
import json
from dataclasses import replace

import pytest

from tasks.data.batches import import_batch
from tasks.data.export import export_questions
from tasks.data.formats import Reading
from tasks.data.records import Comparison, assistant, user
from tasks.errors import ConfigError, PreflineError
from tasks.evaluation.judges.blind import questions
from tasks.evaluation.judges.pairs import Pair, Side
from tasks.evaluation.judges.people import ByPeople, majority
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=200)


def compared(one, other, said="win", who="1", first=None, asked="How warm?", by="people"):
    chosen, rejected = (other, one) if said == "loss" else (one, other)
    return Comparison(
        id=f"{asked} {one} {other} {said} {who}",
        prompt=[user(asked)],
        chosen=[assistant(chosen)],
        rejected=[assistant(rejected)],
        source="labels.json",
        source_id="1",
        group_id="g",
        annotator=who,
        tie=said == "tie",
        chosen_first=first,
        labels_by=by,
    )


def pair(one, other, asked="How warm?"):
    return Pair([user(asked)], Side(one, len(one)), Side(other, len(other)))


def said(people, one, other):
    (verdict,) = people.verdicts([pair(one, other)])
    return verdict and verdict.outcome


# Votes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "outcome"),
    [
        (["win"], "win"),
        (["win", "loss"], "tie"),
        (["win", "loss", "win"], "win"),
        (["win", "tie"], "tie"),
        (["loss", "tie", "loss"], "loss"),
        (["win", "loss", "tie"], "tie"),
        (["tie", "tie", "win"], "tie"),
    ],
)
def test_the_majority_decides_and_a_split_vote_is_a_tie(votes, outcome):
    assert majority(votes) == outcome
    people = ByPeople([compared("Very.", "No.", vote, who=str(who)) for who, vote in enumerate(votes)])
    assert said(people, "Very.", "No.") == outcome
    assert said(people, "No.", "Very.") == {"win": "loss", "loss": "win", "tie": "tie"}[outcome]


def test_what_nobody_judged_has_no_verdict_and_equal_answers_tie():
    people = ByPeople([compared("Very.", "No.")])
    assert said(people, "Very.", "Not at all.") is None
    assert people.verdicts([pair("Very.", "No.", asked="How cold?")]) == [None]
    assert said(people, "Same.", "Same.") == "tie"


def test_spaces_and_line_ends_tell_nothing():
    people = ByPeople([compared("Very\r\nwarm. ", "No.", "loss")])
    assert said(people, "Very\nwarm.", " No.") == "loss"


def test_of_one_persons_words_the_last_counts_and_the_same_record_once():
    again = compared("Very.", "No.", "loss", who="1")
    people = ByPeople([compared("Very.", "No.", "win", who="1"), again, again, compared("Very.", "No.", "win", who="2")])
    assert said(people, "Very.", "No.") == "tie"
    nameless = compared("Very.", "No.", "win", who=None)
    assert said(ByPeople([nameless, nameless, compared("Very.", "No.", "loss")]), "Very.", "No.") == "tie"


def test_a_models_labels_are_no_words_of_people():
    assert said(ByPeople([compared("Very.", "No.", by="ai")]), "Very.", "No.") is None


# Files --------------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.people: there is no labels\.json"):
        ByPeople.read(["labels.json"], tmp_path)


def test_the_sides_of_questions_tell_nothing(make_rows):
    rows = make_rows(prompts=200, champion=True)
    asked = questions(rows, seed=0)
    assert len(asked) == 400  # against the champion and against SFT
    first = sum(question.first.startswith("Policy") for question in asked)
    assert 165 < first < 235
    assert {question.id for question in asked} == {question.id for question in questions(rows[::-1], seed=0)}
    assert [q.first for q in questions(rows, seed=1)] != [q.first for q in asked]
    assert questions(rows, seed=0) == asked


def test_equal_answers_are_nobodys_question(make_rows):
    rows = make_rows(prompts=3)
    rows[0].sft.text = rows[0].policy.text
    assert len(questions(rows, 0)) == 2


@pytest.mark.parametrize("format", ["trl", "hh-rlhf", "vertex", "messages"])
def test_formats_without_tasks_are_refused(format, make_rows, tmp_path):
    with pytest.raises(ConfigError, match="no tasks that wait") as error:
        export_questions(questions(make_rows(prompts=3), 0), format, tmp_path / "a.jsonl")
    assert "label-studio" in error.value.advice


def test_parquet_is_for_no_person(make_rows, tmp_path):
    with pytest.raises(ConfigError, match="Parquet"):
        export_questions(questions(make_rows(prompts=3), 0), "argilla", tmp_path / "a.parquet")


def by_label_studio(path, better):
    tasks = json.loads(path.read_text())
    assert all(task.keys() == {"data", "annotations", "predictions"} for task in tasks)
    for task in tasks:
        for who in (7, 8):
            left = better(task["data"]["prompt"], task["data"]["answer1"], task["data"]["answer2"], who)
            result = [] if left is None else [{"type": "pairwise", "from_name": "pref", "to_name": "pref", "value": {"selected": left}}]
            task["annotations"].append({"completed_by": who, "was_cancelled": False, "result": result})
    path.write_text(json.dumps(tasks))


def by_argilla(path, better):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = {"left": "response1", "right": "response2", None: "tie"}
    for row in rows:
        said = [names[better(row["prompt"][0]["content"], row["response1"], row["response2"], who)] for who in (7, 8)]
        row |= {"preference.responses": said, "preference.responses.users": ["7", "8"], "preference.responses.status": ["submitted"] * 2}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_spreadsheet(path, better):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    value = {"left": -2, "right": 1, None: 0}
    filled = [
        {**row, "annotator": who, "overall_preference": value[better(row["context"], row["response1"], row["response2"], who)]}
        for row in rows
        for who in (7, 8)
    ]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(filled[0]))
        table.writeheader()
        table.writerows(filled)


TOOLS = {"label-studio": ("q.json", by_label_studio), "argilla": ("q.jsonl", by_argilla), "helpsteer3": ("q.csv", by_spreadsheet)}


@pytest.mark.parametrize("format", TOOLS)
def test_labels_come_back_through_an_import(format, make_rows, tmp_path):
    """Two people: one likes the policy, the other too, but calls every lamp of an even number a tie."""
    name, label = TOOLS[format]
    rows = make_rows(prompts=20)
    export_questions(questions(rows, 3), format, tmp_path / name)
    text = (tmp_path / name).read_text()
    assert "sft" not in text.lower().replace("sft says", "")  # but for what the answers say themselves

    def better(prompt, first, second, who):
        number = int(prompt.split("number ")[1].rstrip("?"))
        if who == 8 and number % 2 == 0:
            return None
        return "left" if first.startswith("Policy") else "right"

    label(tmp_path / name, better)
    imported = import_batch(tmp_path, [str(tmp_path / name)], Reading())
    assert (imported.comparisons, len(imported.rejected)) == (40, 0)
    for sources in (["data/batches"], [name], ["data/batches", name]):  # as a batch, as the tool's file, and both are no more
        people = ByPeople.read(sources, tmp_path)
        verdicts = people.verdicts([Pair(row.prompt, Side(row.policy.text, 1), Side(row.sft.text, 1)) for row in rows])
        assert [verdict.outcome for verdict in verdicts] == ["tie", "win"] * 10
        assert people.about == "2 annotators"


# Report -------------------------------------------------------------------------------------------------------------------


def test_what_people_agree_on_is_told(make_rows):
    rows = make_rows(prompts=4)
    texts = [(row.prompt[0]["content"], row.policy.text, row.sft.text) for row in rows]
    votes = [("win", "win"), ("win", "win"), ("loss", "loss"), ("win", "loss")]
    people = ByPeople(
        [
            compared(policy, sft, vote, who=str(who), asked=asked, first=vote == "win")
            for (asked, policy, sft), both in zip(texts, votes, strict=True)
            for who, vote in enumerate(both)
        ]
    )
    rows = [
        replace(row, verdicts=people.verdicts([pair(p, s, asked)]), verdicts_over_sft=people.verdicts([pair(p, s, asked)]))
        for row, (asked, p, s) in zip(rows, texts, strict=True)
    ]
    report = people.report(rows, BOOTSTRAP)
    assert (report.prompts, report.pairs) == (4, 4)
    assert (report.win_rate.wins, report.win_rate.losses, report.win_rate.ties) == (2, 1, 1)
    assert report.agreement[0] == pytest.approx(0.75)
    assert report.prefers_first == pytest.approx(5 / 8)  # five said win, of what was shown first
    assert report.accuracy is None


def test_labels_of_another_evaluation_decide_nothing(make_rows):
    people = ByPeople([compared("Very.", "No.")])
    with pytest.raises(PreflineError, match="of 1 comparisons none is of this policy's answers and the baseline's") as error:
        people.must_know(make_rows(prompts=3))
    assert "--answers RUN" in error.value.advice
