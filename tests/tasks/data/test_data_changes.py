"""Two versions of the data compared row by row: by hand, and so that every row is accounted for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.changes import changes
from tasks.data.records import Comparison, Demonstration, digest, write_jsonl
from tasks.data.versions import Files


def comparison(prompt, chosen, rejected, **more):
    messages = [[{"role": role, "content": text}] for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected))]
    more = {"split": "train", "annotator": "ana"} | more
    return Comparison(digest(messages, more["annotator"]), *messages, source="s", source_id="1", group_id=digest(prompt), **more)


def demonstration(prompt, answer, **more):
    messages = [[{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}]]
    return Demonstration(digest(messages), *messages, source="s", source_id="1", group_id=digest(prompt), **({"split": "train"} | more))


def files(folder, comparisons, demonstrations=()):
    folder.mkdir(parents=True)
    write_jsonl(folder / "comparisons.jsonl", comparisons)
    write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    (folder / "counts.json").write_text('{"rejects": {"rows": 2}}')
    return Files(None, {path.name: path for path in folder.iterdir()})


def test_changes_by_hand(tmp_path):
    kept, turned, tied, gone, moved = (comparison(f"Question {n}?", "Yes, it is.", "No.") for n in range(5))
    old = [kept, turned, tied, gone, moved, kept]
    new = [
        kept,
        comparison("Question 1?", "No.", "Yes, it is."),  # the other answer now
        comparison("Question 2?", "Yes, it is.", "No.", tie=True),  # neither
        comparison("Question 4?", "Yes, it is.", "No.", split="test"),
        comparison("Question 0?", "Yes, it is.", "No.", annotator="ben"),  # another person says the same: a row of its own
        comparison("Question 7?", "Yes, it is.", "No."),
    ]
    before = files(tmp_path / "a", old, [demonstration("Hello?", "Hello."), demonstration("Bye?", "Bye.")])
    after = files(tmp_path / "b", new, [demonstration("Hello?", "Hello.", split="judge"), demonstration("Well?", "Well.")])
    found = changes(before, after)
    assert (found.comparisons.before, found.comparisons.after) == (6, 6)
    assert (found.comparisons.added, found.comparisons.removed) == (2, 2)  # ben's and question 7; question 3 and the copy
    assert (found.comparisons.relabelled, found.comparisons.moved) == (2, {"train to test": 1})
    assert (found.demonstrations.added, found.demonstrations.removed) == (1, 1)
    assert (found.demonstrations.relabelled, found.demonstrations.moved) == (0, {"train to judge": 1})
    figures = {figure.name: (figure.before, figure.after) for figure in found.figures}
    assert figures["comparisons, ties"] == (0, 1)
    assert figures["comparisons, annotators, ben"] == (None, 1)
    assert figures["comparisons, splits, test"] == (0, 1)
    assert "comparisons, rows" not in figures
    back = changes(after, before)
    assert (back.comparisons.added, back.comparisons.removed, back.comparisons.relabelled) == (2, 2, 2)
    assert changes(before, before).none


def test_a_label_that_another_person_corrected(tmp_path):
    before = files(tmp_path / "a", [comparison("Red?", "Yes.", "No.")])
    after = files(tmp_path / "b", [comparison("Red?", "No.", "Yes.", annotator="lead")])
    moves = changes(before, after).comparisons
    assert (moves.relabelled, moves.added, moves.removed) == (1, 0, 0)


ROWS = st.lists(
    st.builds(
        comparison,
        st.sampled_from(["One?", "Two?"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["c", "d"]),
        tie=st.booleans(),
        split=st.sampled_from(["train", "test"]),
        annotator=st.sampled_from(["ana", "ben", None]),
    ),
    max_size=12,
)


@settings(max_examples=15)
@given(ROWS, ROWS)
def test_every_row_is_accounted_for(tmp_path_factory, old, new):
    folder = tmp_path_factory.mktemp("versions")
    before, after = files(folder / "a", old), files(folder / "b", new)
    moves, back = changes(before, after).comparisons, changes(after, before).comparisons
    assert moves.before - moves.removed == moves.after - moves.added
    assert (moves.added, moves.removed, moves.relabelled) == (back.removed, back.added, back.relabelled)
    assert changes(before, files(folder / "c", old[::-1])).comparisons.relabelled == 0
    pairs = [{(str(r.prompt), *sorted([str(r.chosen), str(r.rejected)])) for r in rows} for rows in (old, new)]
    assert moves.added >= len(pairs[1] - pairs[0])
    assert moves.removed >= len(pairs[0] - pairs[1])
