"""What rows of public sets mean, and of demonstrations and our own records."""

import datetime

import pytest

from tasks.data.formats import Rating, Reading, Unusable, ratings, read_row
from tasks.data.records import Comparison, Demonstration, assistant, user

SYSTEM = {"role": "system", "content": "Be kind."}


def read(row, format="auto", **options):
    """Everything that a row gives."""
    return list(read_row(row, Reading(format, **options)))


def one(row, format="auto", **options):
    (found,) = read(row, format, **options)
    return found


def reasons(row, format="auto", **options):
    """Why a row, or parts of it, give nothing."""
    try:
        found = read(row, format, **options)
    except Unusable as fault:
        found = [fault]
    faults = [fault for fault in found if isinstance(fault, Unusable)]
    return [str(fault) for fault in faults]


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


# Public sets -----------------------------------------------------------------------------------------------------


def summaries(**more):
    return {
        "info": {"id": "t3_x", "post": "My cat", "title": "Cat", "subreddit": "pets"},
        "summaries": [{"text": " Cat opened a door.", "policy": "sft"}, {"text": "A dog barked.", "policy": "ref"}],
        "choice": 0,
        "worker": "w1",
        "batch": "b1",
        "split": "train",
        "extra": {"confidence": 7},
    } | more


def test_summaries():
    found = one(summaries())
    assert texts(found) == ("SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat\n\nTL;DR:", "Cat opened a door.", "A dog barked.")
    assert (found.annotator, found.strength, found.chosen_first, found.tags) == ("w1", 7.0, True, ["pets", "b1"])
    assert (found.split, one(summaries(split="valid2")).split) == (None, "validation")
    assert one(summaries(choice=1)).chosen_first is False
    assert texts(one(summaries(info={"article": "News."})))[0] == "ARTICLE: News.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"choice": 2}, '"choice" is none of 0, 1 (2)'),
        ({"choice": True}, '"choice" is none of 0, 1 (true or false)'),
        ({"choice": None}, 'no field "choice"'),
        ({"summaries": [{"text": "a"}]}, '"summaries" is not a list of two objects'),
        ({"summaries": [{"text": "a"}, {"text": 3}]}, '"summaries.text" is a number, expected text'),
        ({"info": {"title": "Cat"}}, '"info.article" is null, expected text'),
    ],
)
def test_summaries_with_a_fault(more, why):
    assert reason(summaries(**more)) == why


UF = {"prompt": "2+2?", "prompt_id": "p1", "chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("22")]}


def test_ultrafeedback():
    found = one(UF | {"score_chosen": 8.5, "score_rejected": 2.0})
    assert (found.prompt, found.chosen, found.rejected) == ([user("2+2?")], [assistant("4")], [assistant("22")])
    assert (found.strength, found.labels_by, found.tie) == (6.5, "ai", False)
    assert one(UF | {"chosen-rating": 4.0, "rejected-rating": 4.0}).tie
    assert one(UF).labels_by is None
    assert reason(UF | {"score_chosen": 1.0, "score_rejected": 2.0}) == '"score_chosen" is below "score_rejected"'
    assert reason(UF | {"score_chosen": 1.0}) == 'no field "score_rejected"'


def test_conversations_of_several_turns_with_one_of_them_as_text():
    before = [SYSTEM, user("Hi"), assistant("Hello!"), user("2+2?")]
    for text in ("Hi", "2+2?"):
        found = one(UF | {"prompt": text, "chosen": [*before, assistant("4")], "rejected": [*before, assistant("22")]})
        assert (found.prompt, found.chosen, found.rejected) == (before, [assistant("4")], [assistant("22")])
    found = one({"question": "Hi", "chosen": [*before, assistant("4")], "rejected": [*before, assistant("22")]})
    assert (found.prompt, found.chosen, found.rejected) == (before, [assistant("4")], [assistant("22")])


def test_helpsteer2_ratings_make_pairs():
    row = {
        "prompt": "Why blue?",
        "response": "Scattering.",
        "helpfulness": 4,
        "correctness": 3,
        "coherence": 4,
        "complexity": 1,
        "verbosity": 1,
    }
    first = one(row)
    second = one(row | {"response": "Paint.", "helpfulness": 1, "correctness": 3})
    assert isinstance(first, Rating)
    assert first.score == 4.0
    (pair,) = ratings.pairs([second, first])
    assert (texts(pair), pair.strength, pair.tie, pair.ranking, pair.labels_by) == (
        ("Why blue?", "Scattering.", "Paint."),
        3.0,
        False,
        None,
        "people",
    )
    weighted = {"rating": {"helpfulness": 0.5, "verbosity": -1.0}}
    assert one(row, **weighted).score == 1.0
    assert one(row | {"quality": 2}, rating={"quality": 1.0}).score == 2.0
    assert reason(row, rating={"quality": 1.0}) == 'no field "quality"'
    assert reason(row | {"helpfulness": "high"}) == '"helpfulness" is not a number within a billion'


def test_three_ratings_are_a_ranking():
    found = list(
        ratings.pairs([Rating([user("Q")], [assistant(text)], score, annotator="a") for text, score in (("x", 1), ("y", 3), ("z", 1))])
    )
    assert [(texts(each)[1:], each.tie, each.strength) for each in found] == [
        (("y", "x"), False, 2),
        (("x", "z"), True, None),
        (("y", "z"), False, 2),
    ]
    assert len({each.ranking for each in found}) == 1
    assert found[0].ranking


@pytest.mark.parametrize(
    ("strength", "chosen", "tie"), [(-3, "Hello!", False), (2, "What.", False), (0, "Hello!", True), ("1", "What.", False)]
)
def test_helpsteer_preferences(strength, chosen, tie):
    two = {"prompt": "Hi", "response_1": "Hello!", "response_2": "What.", "preference_strength": strength, "split": "val"}
    three = {
        "domain": "general",
        "language": "english",
        "context": [user("Hi")],
        "response1": "Hello!",
        "response2": "What.",
        "overall_preference": strength,
    }
    for row in (two, three):
        found = one(row)
        assert (texts(found)[:2], found.tie, found.strength) == (("Hi", chosen), tie, abs(int(strength)) or None)
    assert (one(three).language, one(three).tags, one(two).split) == ("english", ["general"], "validation")
    assert reason(three | {"overall_preference": 4}) == '"overall_preference" is not from -3 to 3 (4)'


@pytest.mark.parametrize(
    ("choice", "chosen", "first"), [(0, "Blue.", True), (1, "Square.", False), ("1", "Square.", False), (1.0, "Square.", False)]
)
def test_vertex(choice, chosen, first):
    found = one({"input_text": "Sky?", "candidate_0": "Blue.", "candidate_1": "Square.", "choice": choice})
    assert (texts(found)[:2], found.chosen_first) == (("Sky?", chosen), first)


@pytest.mark.parametrize("choice", [2, -1, True, "left", 0.5, [0], float("nan")])
def test_vertex_choices_that_are_none(choice):
    assert reason({"input_text": "Sky?", "candidate_0": "Blue.", "candidate_1": "Square.", "choice": choice}).startswith(
        '"choice" is none of 0, 1'
    )


def test_pandalm():
    row = {"instruction": "Add.", "input": "2+2", "response1": True, "response2": "4", "annotator1": 1, "annotator2": 2, "annotator3": 0}
    found = read(row)
    assert verdicts(found) == [("True", "4", False, True), ("4", "True", False, False), ("True", "4", True, None)]
    assert [each.annotator for each in found] == ["annotator1", "annotator2", "annotator3"]
    assert found[0].prompt == [user("Add.\n\n2+2")]
    assert reason(row | {"response1": ""}) == '"response1" is empty'
    assert reason(row | {"annotator2": 3}) == '"annotator2" is none of 0, 1, 2 (3)'
    assert len(read(row | {"annotator2": 3})) == 3


def test_fine_grained():
    row = {f"prediction {place}": f"Answer {place}." for place in range(1, 5)}
    row |= {"question": "When?", "passages": [["T", "T\n\nIn May.", "So."]], "preference": [1, 2, 0, 1, 2, 1]}
    found = read(row | {"feedback": {"corrected-prediction": " In May. "}})
    assert [(texts(each)[1][7], texts(each)[2][7], each.tie) for each in found[:6]] == [
        ("1", "2", False),
        ("3", "1", False),
        ("1", "4", True),
        ("2", "3", False),
        ("4", "2", False),
        ("3", "4", False),
    ]
    assert isinstance(found[6], Demonstration)
    assert texts(found[6]) == ("When?\n\nT: In May. So.", "In May.")
    assert len(read(row | {"feedback": {"corrected-prediction": ""}})) == 6
    assert reason(row | {"preference": [1]}) == '"preference" is not a list of six labels'


def test_llmbar():
    row = {"input": "Sky?", "output_1": "Square.", "output_2": "Blue.", "label": 2}
    assert verdicts([one(row)]) == [("Blue.", "Square.", False, False)]
    assert reason(row | {"label": 0}) == '"label" is none of 1, 2 (0)'


def test_reward_bench_keeps_its_subsets_as_tags():
    row = {
        "prompt": "Sky?",
        "chosen": "Blue.",
        "chosen_model": "a",
        "rejected": "Square.",
        "rejected_model": "b",
        "subset": "hep-rust",
        "id": 7,
    }
    found = one(row)
    assert verdicts([found]) == [("Blue.", "Square.", False, None)]
    assert found.tags == ["hep-rust"]
    assert one(row | {"subset": " "}).tags == []


def message(text, role="assistant", replies=(), **more):
    return {"text": text, "role": role, "lang": "en", "replies": list(replies)} | more


def test_message_trees():
    deep = message("And?", "prompter", [message("More.", rank=1), message("Less.", rank=0)])
    tree = {
        "prompt": message(
            "Hi", "prompter", [message("Hello!", rank=1, replies=[deep]), message("Hey.", rank=0), message("Yo."), message("Ho.", rank=2)]
        )
    }
    found = read(tree)
    assert [(each.prompt[-1]["content"], *texts(each)[1:]) for each in found] == [
        ("Hi", "Hey.", "Hello!"),
        ("Hi", "Hey.", "Ho."),
        ("Hi", "Hello!", "Ho."),
        ("And?", "Less.", "More."),
    ]
    assert found[3].prompt == [user("Hi"), assistant("Hello!"), user("And?")]
    assert [each.ranking is None for each in found] == [False, False, False, True]
    assert {(each.language, each.labels_by, each.chosen_first) for each in found} == {("en", "people", None)}


def test_message_trees_with_faults():
    assert reason({"prompt": message("Hi", "prompter")}) == "no message has two ranked replies"
    broken = message(None, replies=[])
    tree = {"prompt": message("Hi", "prompter", [message("a", rank=0), message("b", rank=1), broken])}
    assert reason(tree) == '"text" is null, expected text'
    assert len(read(tree)) == 2
    nest = message("end")
    for depth in range(5000):
        nest = message("x", ("assistant", "prompter")[depth % 2], [nest])
    assert reason({"prompt": nest}) == "no message has two ranked replies"


# TRL and demonstrations ------------------------------------------------------------------------------------------


def test_verdicts_on_one_answer():
    assert [one({"prompt": "Sky?", "completion": "Blue.", "label": label}).score for label in (True, False, "true")] == [1.0, 0.0, 1.0]
    assert reason({"prompt": "Sky?", "completion": "Blue.", "label": 1}) == '"label" is a number, expected true or false'


def test_pairs_with_a_prompt_of_another_name_and_system_text():
    found = one({"system": "Be kind.", "question": "Sky?", "chosen": "The sky is blue.", "rejected": "The sky is square."})
    assert (found.prompt, texts(found)[1]) == ([SYSTEM, user("Sky?")], "The sky is blue.")
    assert texts(one({"instruction": "Add.", "input": "2+2", "chosen": "4", "rejected": "22"}))[0] == "Add.\n\n2+2"
    assert texts(one({"q": "Sky?", "chosen": "A b.", "rejected": "A c."}, fields={"prompt": "q"})) == ("Sky?", "A b.", "A c.")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": [SYSTEM, user("Sky?"), assistant("Blue.")]}, [SYSTEM, user("Sky?")]),
        ({"prompt": "Sky?", "completion": "Blue.", "system": "Be kind."}, [SYSTEM, user("Sky?")]),
        ({"prompt": "Sky?", "response": "Blue."}, [user("Sky?")]),
        ({"question": "Sky?", "answer": "Blue."}, [user("Sky?")]),
        ({"instruction": "Sky?", "input": "", "output": "Blue."}, [user("Sky?")]),
        ({"instruction": "Colour?", "input": "Sky", "output": "Blue."}, [user("Colour?\n\nSky")]),
        (
            {"system": "Be kind.", "instruction": "Sky?", "output": "Blue.", "history": [["Hi", "Hello!"]]},
            [SYSTEM, user("Hi"), assistant("Hello!"), user("Sky?")],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be kind."},
                    {"from": "human", "value": "Sky?"},
                    {"from": "gpt", "value": "Blue."},
                ]
            },
            [SYSTEM, user("Sky?")],
        ),
        ({"instruction": "Sky?", "instances": [{"input": "", "output": "Blue."}], "id": "seed_task_0"}, [user("Sky?")]),
        (
            {"question_id": 1, "category": "math", "turns": ["Hi", "Sky?"], "reference": ["Hello!", "Blue."]},
            [user("Hi"), assistant("Hello!"), user("Sky?")],
        ),
        ({"question_id": 1, "turns": ["Sky?", "And?"], "reference": ["Blue.", ""]}, [user("Sky?")]),
    ],
)
def test_demonstrations(row, prompt):
    found = one(row)
    assert isinstance(found, Demonstration)
    assert (found.prompt, found.answer) == (prompt, [assistant("Blue.")])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"conversations": [{"from": "human", "value": "Sky?"}]}, '"conversations" does not end with an answer by the assistant'),
        ({"conversations": [{"from": "dog", "value": "Wuff"}]}, '"conversations.from" is nobody we know (dog)'),
        ({"conversations": "Sky?"}, '"conversations" is text, expected a list'),
        ({"instruction": " ", "output": "Blue."}, '"instruction" is empty'),
        ({"instruction": "Sky?", "output": ""}, '"output" is empty'),
        ({"question_id": 1, "turns": ["Sky?"]}, "a question without an answer"),
        ({"question_id": 1, "turns": ["Sky?"], "reference": []}, '"turns" and "reference" are not lists of one length'),
        ({"instruction": "Sky?", "instances": []}, '"instances" is not a list of inputs and outputs'),
        ({"instruction": "Sky?", "instances": [{"input": ""}]}, 'no field "output"'),
        ({"messages": "Sky?"}, '"messages" is text, expected a list of messages'),
    ],
)
def test_demonstrations_with_a_fault(row, why):
    assert reason(row) == why


# Our own records -------------------------------------------------------------------------------------------------

PAIR = {"prompt": "Is it red?", "chosen": "Yes.", "rejected": "No."}


def test_what_a_record_of_ours_may_say():
    more = {"chosen_first": False, "seconds": 2.5, "labels_by": "people", "language": "en", "created_at": datetime.date(2026, 1, 2)}
    found = one(PAIR | more)
    assert (found.chosen_first, found.seconds, found.labels_by, found.language, found.created_at) == (
        False,
        2.5,
        "people",
        "en",
        "2026-01-02",
    )
    assert one({"prompt": "a", "answer": "b", "language": "en"}).language == "en"


def test_texts_of_a_table_count_as_what_they_say():
    found = one(PAIR | {"tie": "True", "strength": "2.5", "contract_version": "1", "annotator": 3, "chosen_first": "false"})
    assert (found.tie, found.strength, found.annotator, found.chosen_first) == (True, 2.5, "3", False)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"labels_by": "robots"}, '"labels_by" is neither people nor ai (robots)'),
        ({"seconds": -1}, '"seconds" is below 0'),
        ({"seconds": "NaN"}, '"seconds" is not a number within a billion'),
        ({"chosen_first": 1}, '"chosen_first" is a number, expected true or false'),
        ({"chosen_frist": True, "tie": False}, "a record has no such field (chosen_frist)"),
    ],
)
def test_records_of_ours_with_a_fault(more, why):
    assert reason(PAIR | more) == why


def test_a_demonstration_has_no_annotator():
    assert reason({"prompt": "a", "answer": "b", "annotator": "ana"}) == 'a demonstration has no "annotator"'
