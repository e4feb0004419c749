"""What rows of annotation tools mean. The texts are made up; the shapes are the tools'."""

import typing

import pytest

from tasks.config import FormatName
from tasks.data.formats import FORMATS, Reading, Unusable, read_row
from tasks.data.records import Comparison
from tasks.errors import ConfigError


def read(row, format="auto", **options):
    """Everything that a row gives."""
    return list(read_row(row, Reading(format, **options)))


def one(row, format="auto", **options):
    (found,) = read(row, format, **options)
    return found


def reasons(row, format="auto", **options):
    """Why a row, or parts of it, give nothing; a skipped one in brackets."""
    try:
        found = read(row, format, **options)
    except Unusable as fault:
        found = [fault]
    faults = [fault for fault in found if isinstance(fault, Unusable)]
    return [f"({fault})" if fault.skipped else str(fault) for fault in faults]


def reason(row, format="auto", **options):
    (why,) = reasons(row, format, **options)
    return why


def texts(found):
    """The last text of prompt, chosen and rejected (or answer)."""
    sides = (found.prompt, found.chosen, found.rejected) if isinstance(found, Comparison) else (found.prompt, found.answer)
    return tuple(messages[-1]["content"] for messages in sides)


def verdicts(found):
    """Chosen, rejected, whether it was a tie and whether chosen stood first."""
    return [(*texts(each)[1:], each.tie, each.chosen_first) for each in found]


def test_the_configuration_knows_every_format():
    assert list(typing.get_args(FormatName)) == ["auto", *FORMATS]


def test_an_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r'"hhrlhf" is no format(.|\n)*hh-rlhf'):
        read({"chosen": "a"}, "hhrlhf")


# Label Studio ----------------------------------------------------------------------------------------------------

DATA = {"prompt": "Boil an egg?", "answer1": "8 minutes.", "answer2": "Use the fridge."}


def pairwise(selected, **more):
    item = {"type": "pairwise", "from_name": "pref", "to_name": "pref", "value": {"selected": selected}}
    return {"id": 1, "completed_by": 3, "was_cancelled": False, "result": [item]} | more


def task(*annotations, data=DATA, **more):
    return {"id": 1, "data": data, "annotations": list(annotations), "predictions": []} | more


def test_pairwise_left_is_the_first_text():
    row = task(
        pairwise("left", lead_time=9.1, created_at="2026-11-01T10:00:00Z"), pairwise("right", completed_by={"id": 4, "email": "x@y.z"})
    )
    first, second = read(row)
    assert (texts(first), first.chosen_first, first.annotator) == (("Boil an egg?", "8 minutes.", "Use the fridge."), True, "3")
    assert (first.seconds, first.created_at, first.labels_by, first.tie) == (9.1, "2026-11-01T10:00:00Z", "people", False)
    assert (texts(second), second.chosen_first, second.annotator) == (("Boil an egg?", "Use the fridge.", "8 minutes."), False, "4")


def test_pairwise_neither_is_a_tie_and_cancelled_is_skipped():
    found = read(task(pairwise("left", result=[]), pairwise("left", result=[], was_cancelled=True)))
    assert verdicts(found[:1]) == [("8 minutes.", "Use the fridge.", True, None)]
    assert isinstance(found[1], Unusable)
    assert found[1].skipped


def test_two_verdicts_of_one_person_are_kept_as_they_are():
    assert [each.chosen_first for each in read(task(pairwise("left"), pairwise("right")))] == [True, False]


def test_nothing_of_a_person_is_kept_but_a_number():
    for who in ({"id": 7, "email": "ana@example.org", "first_name": "Ana"}, "ana@example.org"):
        assert "ana" not in str(one(task(pairwise("left", completed_by=who)))).lower()
    assert one(task(pairwise("left", completed_by={"email": "ana@example.org"}))).annotator is None
    assert (
        one(task(pairwise("left", completed_by="bob@example.org"))).annotator
        != one(task(pairwise("left", completed_by="ana@example.org"))).annotator
    )


def test_older_exports_name_the_texts_in_the_control():
    data = {"question": "Boil an egg?", "b": "8 minutes.", "a": "Use the fridge.", "answer1": "no", "answer2": "no"}
    annotation = pairwise("left")
    annotation["result"][0]["to_name"] = "b,a"
    assert texts(one(task(annotation, data=data))) == ("Boil an egg?", "8 minutes.", "Use the fridge.")


def test_the_texts_by_the_names_that_the_user_gives():
    data = {"frage": "Boil an egg?", "eins": "8 minutes.", "zwei": "Use the fridge."}
    fields = {"prompt": "frage", "left": "eins", "right": "zwei"}
    assert texts(one(task(pairwise("right"), data=data), fields=fields)) == ("Boil an egg?", "Use the fridge.", "8 minutes.")
    assert "name them with --field left=NAME" in reason(task(pairwise("left"), data=data))
    assert 'no field "drei", which --field names as right' in reason(task(pairwise("left"), data=data), fields=fields | {"right": "drei"})
    assert "names one of the two texts only" in reason(task(pairwise("left"), data=data), fields={"left": "eins"})
    assert "name it with --field prompt=NAME" in reason(task(pairwise("left"), data={"answer1": "a", "answer2": "b"}))


@pytest.mark.parametrize(
    "names",
    [("answer_1", "answer_2"), ("response1", "response2"), ("left", "right"), ("option-a", "option-b"), ("candidate_0", "candidate_1")],
)
def test_the_usual_names_of_two_texts(names):
    data = {"prompt": "Sky?", names[1]: "Square.", names[0]: "Blue.", "note1": "x"}
    assert texts(one(task(pairwise("left"), data=data))) == ("Sky?", "Blue.", "Square.")


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (pairwise("middle"), '"annotations.value.selected" is neither left nor right (middle)'),
        (pairwise(None), '"annotations.value.selected" is neither left nor right (None)'),
        (
            pairwise("left", result=[{"type": "rating", "value": {"rating": 3}}]),
            '"annotations.result" has no control that compares answers (rating)',
        ),
        (pairwise("left", result=[{"type": "pairwise"}]), '"annotations.value" is null, expected an object'),
        (pairwise("left", result=["left"]), '"annotations.result" holds something that is not an object'),
        (pairwise("left", result=None), '"annotations.result" is null, expected a list'),
        (pairwise("left", lead_time=-2), '"annotations.lead_time" is below 0'),
        ("left", '"annotations" holds text, expected an object'),
    ],
)
def test_annotations_that_give_nothing_leave_the_others(annotation, why):
    row = task(annotation, pairwise("left"))
    assert reason(row) == why
    assert len(read(row)) == 2


def test_the_control_that_counts_where_there_are_several():
    harm = {"type": "pairwise", "from_name": "harm", "to_name": "harm", "value": {"selected": "right"}}
    annotation = pairwise("left")
    annotation["result"].append(harm)
    assert "name the control that counts with --field control=NAME" in reason(task(annotation))
    assert one(task(annotation), fields={"control": "harm"}).chosen_first is False
    for comment in ({"type": "textarea", "from_name": "why", "to_name": "a,b", "value": {"text": ["short"]}}, {"type": "relation"}):
        assert one(task(pairwise("left", result=[comment, *pairwise("right")["result"]]))).chosen_first is False


def test_predictions_are_labels_by_an_ai():
    row = task(pairwise("left"), predictions=[{"model_version": "judge-1", "result": pairwise("right")["result"]}])
    assert [(each.labels_by, each.annotator, each.chosen_first) for each in read(row)] == [("people", "3", True), ("ai", "judge-1", False)]
    assert len(read(task(pairwise("left"), predictions=[17]))) == 1


def test_a_task_that_nobody_annotated_is_skipped():
    assert reason(task()) == "(nobody has annotated this task)"
    assert reason(task(data=[1]), "label-studio") == '"data" is a list, expected an object'


ITEMS = [
    {"id": "m1", "title": "A", "body": "Seven."},
    {"id": "m2", "title": "B", "body": "Nine."},
    {"id": "m3", "title": "C", "body": "Ten."},
]


def ranker(order, **more):
    item = {"type": "ranker", "from_name": "rank", "to_name": "answers", "value": {"ranker": order}}
    return {"id": 12, "completed_by": 1, "was_cancelled": False, "result": [item]} | more


def ranked(*annotations, data=None):
    return task(*annotations, data=data or {"prompt": "3+4?", "items": ITEMS})


@pytest.mark.parametrize("order", [{"rank": ["m2", "m1", "m3"]}, ["m2", "m1", "m3"]])
def test_a_ranking_compares_each_two(order):
    found = read(ranked(ranker(order)))
    assert verdicts(found) == [("Nine.", "Seven.", False, False), ("Nine.", "Ten.", False, True), ("Seven.", "Ten.", False, True)]
    assert len({each.ranking for each in found}) == 1
    assert found[0].ranking


def test_rankings_of_two_annotations_are_two():
    first, second = ranker(["m1", "m2", "m3"]), ranker(["m1", "m2", "m3"], id=13)
    assert len({each.ranking for each in read(ranked(first, second))}) == 2
    assert [each.ranking for each in read(ranked(ranker(["m1", "m2"])))] == [None]  # two answers: a lone pair


def test_only_the_user_knows_the_order_of_buckets():
    row = ranked(ranker({"bad": ["m1"], "good": ["m2", "m3"]}))
    assert reason(row).startswith('"annotations.value.ranker" has several lists: say which is best with --field buckets=')
    assert verdicts(read(row, fields={"buckets": "good, bad"})) == [
        ("Nine.", "Ten.", True, None),
        ("Nine.", "Seven.", False, False),
        ("Ten.", "Seven.", False, False),
    ]


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (ranker([], result=[]), "the ranking is empty"),
        (ranker({"rank": []}), "the ranking is empty"),
        (ranker(["m1"]), "the ranking has fewer than two answers"),
        (ranker(["m1", "m9"]), '"annotations.value.ranker" names an item that the task has not, or names it twice (m9)'),
        (ranker(["m1", "m1"]), '"annotations.value.ranker" names an item that the task has not, or names it twice (m1)'),
        (ranker({"rank": "m1"}), '"annotations.value.ranker" is text, expected a list'),
        (ranker([], result=[], was_cancelled=True), "(skipped by the annotator)"),
    ],
)
def test_rankings_that_give_nothing(annotation, why):
    assert reason(ranked(annotation)) == why


def test_a_ranking_of_very_many_is_refused():
    items = [{"id": at, "body": f"Answer {at}."} for at in range(65)]
    row = ranked(ranker(list(range(65))), data={"prompt": "3+4?", "items": items})
    assert reason(row) == "a ranking of more than 64 answers (65)"


def test_a_ranking_needs_a_prompt():
    assert "name it with --field prompt=NAME" in reason(ranked(ranker(["m1", "m2"]), data={"items": ITEMS}))


# Argilla ---------------------------------------------------------------------------------------------------------


def argilla(value, status="submitted", **more):
    return {
        "id": "x",
        "prompt": "Say hi",
        "response1": "Hello!",
        "response2": "No.",
        "preference.responses": [value],
        "preference.responses.users": ["u7"],
        "preference.responses.status": [status],
    } | more


@pytest.mark.parametrize(
    "value",
    ["response1", "1", "r1", 1, ["r1", "r2"], [{"value": "r1"}, {"value": "r2"}], [{"rank": 2, "value": "r2"}, {"rank": 1, "value": "r1"}]],
)
def test_argilla_every_way_to_say_that_the_first_is_better(value):
    found = one(argilla(value))
    assert (texts(found), found.chosen_first, found.annotator, found.labels_by) == (("Say hi", "Hello!", "No."), True, "u7", "people")


@pytest.mark.parametrize("value", ["tie", "Both", [{"rank": 1, "value": "r1"}, {"rank": 1, "value": "r2"}]])
def test_argilla_ties(value):
    assert verdicts(read(argilla(value))) == [("Hello!", "No.", True, None)]


@pytest.mark.parametrize("status", ["draft", "discarded"])
def test_argilla_keeps_what_was_submitted(status):
    assert reason(argilla("response1", status)) == f"(a response that was not submitted ({status}))"


def test_argilla_lists_are_parallel():
    row = argilla("response1") | {
        "preference.responses": ["response1", "response2"],
        "preference.responses.users": ["u1", "u2"],
        "preference.responses.status": ["submitted", "submitted"],
    }
    assert [(each.annotator, each.chosen_first) for each in read(row)] == [("u1", True), ("u2", False)]
    assert "not lists of one length" in reason(row | {"preference.responses.users": ["u1"]})


def test_argilla_nested_records_and_suggestions():
    row = {
        "fields": {"prompt": "Say hi", "response1": "Hello!", "response2": "No."},
        "responses": {"preference": [{"value": "response2", "user_id": "u1"}]},
        "suggestions": {"preference": {"value": "response1", "agent": "judge"}},
    }
    assert [(each.annotator, each.labels_by, each.chosen_first) for each in read(row)] == [("u1", "people", False), ("judge", "ai", True)]
    flat = argilla("response1") | {
        "preference.responses": None,
        "preference.suggestion": "response2",
        "preference.suggestion.agent": "judge",
    }
    assert (one(flat).labels_by, one(flat).chosen_first) == ("ai", False)


def test_argilla_ranking_of_three():
    found = read(argilla(["r3", "r1", "r2"], response3="Hi."))
    assert verdicts(found) == [("Hi.", "Hello!", False, False), ("Hi.", "No.", False, False), ("Hello!", "No.", False, True)]
    assert reason(argilla("r3", response3="Hi.")) == '"preference.responses" chooses one of 3 answers: no comparison of two'


def test_argilla_which_question():
    row = argilla("response1") | {"preference.responses": None, "q1.responses": ["response2"], "q2.responses": ["response1"]}
    row = {name: value for name, value in row.items() if not name.startswith("preference")}
    assert reason(row) == "which question compares the answers? Name it with --field question=NAME (q1, q2)"
    assert one(row, fields={"question": "q2"}).chosen_first is True
    assert one(argilla("response1") | {"comment.responses": ["nice"]}).chosen_first is True


@pytest.mark.parametrize("value", ["r9", True, None, 1.5, {"a": 1}, ["r1"], ["r1", "r1"], ["r1", "maybe"]])
def test_argilla_values_that_say_nothing(value):
    assert '"preference.responses"' in reason(argilla(value))
