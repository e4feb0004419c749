"""What a language model is asked, and how its reply is read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.evaluation.judges.template import FIELDS, Template, read_verdict

SHIPPED = Path(__file__).parents[3] / "mlflow" / "judge.txt"
ANY = st.text(max_size=60) | st.sampled_from(["{prompt}", "{first} {second}", "{{", "}{", "%s {0}", "\\1 \\g<0>", "{prompt"])


@pytest.fixture
def read(tmp_path):
    def make(content):
        (tmp_path / "judge.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return Template.read(tmp_path / "judge.txt", "judge.txt")

    return make


@given(ANY, ANY, ANY)
def test_texts_stand_in_it_as_they_are_whatever_is_in_them(prompt, first, second):
    assert Template("<{prompt}> {0} {first}|{second}} {").filled(prompt, first, second) == f"<{prompt}> {{0}} {first}|{second}}} {{"


def test_the_shipped_one_asks_for_what_is_read():
    template = Template.read(SHIPPED, "mlflow/judge.txt")
    text = template.filled("How warm?", "Very {first}.", "Not at all.")
    assert text.index("How warm?") < text.index("Very {first}.") < text.index("Not at all.")
    assert [read_verdict(line) for line in text.splitlines() if read_verdict(line)] == ["A", "B", "TIE"]


def test_each_field_must_be_there(read):
    assert read("{prompt}{first}{second}{first}")
    for name in FIELDS:
        with pytest.raises(ConfigError, match=rf"judge\.txt: the field {{{name}}} is missing"):
            read("{prompt}{first}{second}".replace(f"{{{name}}}", ""))


def test_an_unknown_field_is_named_with_its_line(read):
    with pytest.raises(ConfigError, match=r"judge\.txt, line 2: there is no field {answer}") as error:
        read("{prompt}\n{answer} {first}\n{second}")
    assert "{second}" in error.value.advice
    assert read('{prompt}{first}{second} {"verdict": 1} {} { x }')


def test_a_file_that_can_not_be_read(read, tmp_path):
    with pytest.raises(ConfigError, match=r"language_model\.template: x\.txt can't be read: No such file"):
        Template.read(tmp_path / "none", "x.txt")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read(b"\xff{prompt}")


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Verdict: A", "A"),
        ("A is better.\n\nVerdict: B\n\n", "B"),
        ("Verdict: A\nNo, wait.\nVerdict: TIE", "TIE"),
        ("  Verdict: A  \r\n", "A"),
        ("", None),
        ("Verdict: A\nThat is all.", None),
        ("Verdict: A or B", None),
        ("Verdict: A.", None),
        ("**Verdict: A**", None),
        ("verdict: a", None),
        ("Verdict: C", None),
        ("Verdict: Tie", None),
        ("My Verdict: A", None),
        ("A", None),
        ("Verdict: A\u2028x", None),
    ],
)
def test_the_last_line_is_the_verdict_or_there_is_none(reply, found):
    assert read_verdict(reply) == found


@given(st.text(), st.sampled_from(["A", "B", "TIE"]))
def test_whatever_goes_before_it(text, letter):
    assert read_verdict(f"{text}\nVerdict: {letter}") == letter


@given(st.text())
def test_nothing_is_guessed(text):
    assert read_verdict(text) is None or text.strip().split("\n")[-1].strip() == f"Verdict: {read_verdict(text)}"
