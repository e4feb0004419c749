"""Prompts of an evaluation set, found again in the data by runs of words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.contamination import RUN, EvaluationPrompts, prompts_of
from tasks.data.records import assistant, user
from tasks.errors import PreflineError

WORDS = [f"word{n}" for n in range(40)]


def test_thirteen_words_in_a_row_are_enough_and_twelve_are_not():
    known = EvaluationPrompts([" ".join(WORDS)])
    assert known.knows([user("Please: " + ", ".join(WORDS[5 : 5 + RUN]).upper() + "!")])
    assert not known.knows([user("Please: " + " ".join(WORDS[5 : 4 + RUN]) + " no more")])
    assert known.knows([user(" ".join(WORDS[5 : 5 + RUN]))])
    assert not known.knows([user(" ".join(WORDS[5 : 4 + RUN]))])


def test_short_prompts_must_be_the_same_as_a_whole():
    known = EvaluationPrompts(["What is two plus two?"])
    assert known.knows([user("  what is TWO plus two")])
    assert not known.knows([user("What is two plus two plus two?")])
    assert not known.knows([user("What is two?")])


def test_only_what_users_say_counts():
    known = EvaluationPrompts(["What is two plus two?"])
    assert known.knows([{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello"), user("What is two plus two?")])
    assert not known.knows([user("Hi"), assistant("What is two plus two?"), user("Yes")])


def test_texts_without_words_are_known_to_nobody():
    known = EvaluationPrompts(["...", "?!"])
    assert not known.knows([user("?!")])


def test_scripts_without_spaces_are_read_character_by_character():
    text = "这是一个用来测试模型的很长的问题请回答"
    known = EvaluationPrompts([text])
    assert known.knows([user("请问：" + text[2:17])])
    assert not known.knows([user(text[:6])])


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_known_by_brute_force(evaluation, asked):
    known = EvaluationPrompts([" ".join(evaluation)]).knows([user(" ".join(asked))])
    if len(evaluation) < RUN or len(asked) < RUN:
        assert known == (evaluation == asked and bool(asked))
    else:
        runs = [evaluation[n : n + RUN] for n in range(len(evaluation) - RUN + 1)]
        assert known == any(asked[n : n + RUN] in runs for n in range(len(asked) - RUN + 1))


ROWS = {
    "prompt": ({"prompt": "Why?"}, ["Why?"]),
    "question": ({"question_id": 1, "question": "Why?"}, ["Why?"]),
    "turns": ({"turns": ["Why?", "And how?"]}, ["Why?", "And how?"]),
    "messages": ({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]}, ["Why?"]),
    "comparison": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, ["Why?"]),
    "demonstration": ({"prompt": "Why?", "completion": "So."}, ["Why?"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_prompts_with_and_without_answers(name, tmp_path):
    row, wanted = ROWS[name]
    (tmp_path / "exam.jsonl").write_text(json.dumps(row) + "\n")
    assert [text.strip() for text in prompts_of(tmp_path / "exam.jsonl", "exam.jsonl")] == wanted


@pytest.mark.parametrize("text", ['{"answer": "Yes."}', '"why"', "[1]", "17", "{cut"])
def test_a_file_without_prompts_is_refused(text, tmp_path):
    (tmp_path / "exam.jsonl").write_text(f"{text}\n")
    with pytest.raises(PreflineError, match=r"^exam.jsonl: no prompts"):
        EvaluationPrompts.load(["exam.jsonl"], tmp_path)


def test_no_files_are_no_evaluation_set(tmp_path):
    assert EvaluationPrompts.load([], tmp_path) is None
