"""The page and its Markdown twin: whole, self-contained, and proof against what models write."""

import re
import time
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import pytest
from PIL import Image

from tasks.evaluation import words
from tasks.evaluation.answers import Verdict, answers_table, read_answers, write_answers
from tasks.evaluation.findings import findings
from tasks.evaluation.plots import PLOTS, draw
from tasks.evaluation.report import (
    StageLine,
    WholeRun,
    examples,
    listed,
    markdown_text,
    plain_text,
    render_markdown,
    render_report,
    write_report,
)
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=400)
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> | `code` **bold** [link](https://evil.example) "
    '"quote" \x00\x1b[31m\n| new | row |\n# title'
)


class Seen(HTMLParser):
    """The tags and the addresses of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def evaluated(make_evidence, make_rows):
    """evaluated(rows) -> an Evaluation and its rows."""

    def make(rows=None, **evidence):
        rows = rows or make_rows()
        return findings(make_evidence(rows, **evidence), BOOTSTRAP), rows

    return make


def not_promoted(**more):
    """A run whose policy a gate refused."""
    gate = SimpleNamespace(name="reward hacking", required="none", found="own <b>+2</b>, judge -0.8", passed=False)
    decision = SimpleNamespace(
        decision="not promoted", model="prefline-policy", version="4", previous="3", reasons=["reward hacking: found"]
    )
    return WholeRun(decision, [gate], **more)


def test_page_stands_alone(evaluated, make_evidence, tmp_path):
    found, rows = evaluated()
    draw(found, make_evidence(rows).rounds, BOOTSTRAP, tmp_path)
    begun = time.monotonic()
    write_report(found, rows, tmp_path, tmp_path)
    assert time.monotonic() - begun < 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    seen = Seen(page)
    assert len(page) < 2_000_000
    assert seen.tags.count("img") == len(PLOTS)
    assert "script" not in seen.tags
    assert "link" not in seen.tags
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in seen.addresses)
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    for anchor in (address for address in seen.addresses if address.startswith("#")):
        assert f'id="{anchor[1:]}"' in page


def test_hostile_texts_are_only_texts(evaluated, make_rows, tmp_path):
    rows = make_rows(tags=("price", "<b>$tag|</b>", "refuse"))
    rows[0].policy.text = rows[0].sft.text = rows[0].prompt[0]["content"] = HOSTILE
    rows[0].policy.judge = 99.0
    found, rows = evaluated(rows, baseline="champion <i>3</i>")
    hostile = {"<u>what</u>": "<u>abc</u>"}
    stages = [StageLine("<u>", "<u>", 0.5, "<u>", "<u>", "<u>", "<u>")]
    run = not_promoted(data=hostile, stages=stages, spent="<u>", lineage=hostile)
    page = render_report(found, rows, tmp_path, run)
    seen = Seen(page)
    assert not {"script", "img", "u", "table-row"} & set(seen.tags)
    assert seen.tags.count("b") == page.count("<b style=")
    assert seen.text.count("<script>alert(1)</script>") == 6  # side by side, and in the list of all
    assert "\x00" not in page
    assert "\x1b" not in page


def test_hostile_texts_stay_in_their_cell_of_markdown(evaluated, make_rows):
    rows = make_rows()
    rows[0].policy.text = rows[0].prompt[0]["content"] = HOSTILE
    rows[0].policy.judge = 99.0
    found, rows = evaluated(rows)
    page = render_markdown(found, rows)
    [line] = [line for line in page.splitlines() if "alert(1)" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 5
    assert "<" not in line
    assert not re.search(r"(?<!\\)[`*\[\]]", line)
    assert "://" not in line


def test_markdown_text():
    assert markdown_text("a|b `c`\n<d> & *e*") == r"a\|b \`c\` &lt;d&gt; &amp; \*e\*"
    assert markdown_text("https://x.example www.y.example me@z.example") == "https&#58;//x.example www&#46;y.example me&#64;z.example"
    assert markdown_text("back\\slash|") == "back\\\\slash\\|"


def test_tables_of_markdown_are_whole(evaluated, make_rows):
    found, rows = evaluated(make_rows(champion=True), baseline="champion, version 3", version="3")
    stages = [StageLine("sft", "1 min 1 s", 1.0, "perplexity 2.1")]
    page = render_markdown(found, rows, not_promoted(data={"Comparisons": "12"}, stages=stages, spent="Long.", lineage={"commit": "abc"}))
    assert page.startswith("# Not promoted\n")
    widths = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0 for line in page.splitlines()]
    for above, below in pairwise(widths):
        assert not (above and below) or above == below
    titles = ("Gates", "Win rates", "Means", "Over-optimisation", "The judge", "Slices", "Data", "Time and cost", "Lineage")
    assert all(f"## {title}" in page.splitlines() for title in titles)


def test_long_texts_are_cut_and_say_so():
    assert plain_text("a" * 2000) == "a" * 1500 + " … (cut: 2,000 characters)"
    assert plain_text("lone \ud800 surrogate\tand tab") == "lone \ufffd surrogate\tand tab"


def test_twenty_examples_and_none_twice(make_rows):
    rows = make_rows(prompts=60)
    groups = list(examples(rows).values())
    assert [len(group) for group in groups] == [7, 7, 6]
    assert len({example.row.group_id for group in groups for example in group}) == 20
    leads = sorted((row.policy.judge - row.sft.judge for row in rows), reverse=True)
    assert [example.lead for example in groups[0]] == leads[:7]
    assert [example.lead for example in groups[1]] == leads[::-1][:7]
    assert examples(rows) == examples(rows)


@pytest.mark.parametrize("prompts", [1, 2, 5, 19, 20])
def test_few_prompts_are_all_shown_once(make_rows, prompts):
    groups = examples(make_rows(prompts=prompts)).values()
    assert len({example.row.group_id for group in groups for example in group}) == sum(map(len, groups)) == prompts


def test_report_without_a_truth_or_slices(evaluated, make_rows, tmp_path):
    found, rows = evaluated(make_rows(prompts=5, truth=False))
    page, twin = render_report(found, rows, tmp_path), render_markdown(found, rows)
    assert "known truth<strong>" not in page
    assert "## Slices" not in twin
    assert "None" not in Seen(page).text + twin


def test_the_decision_comes_first(evaluated, tmp_path):
    found, rows = evaluated()
    run = not_promoted()
    page = render_report(found, rows, tmp_path, run)
    assert page.index("Not promoted") < page.index("The policy beats")
    run.decision.decision = "promoted"
    assert "in place of version 3" in render_report(found, rows, tmp_path, run)


def test_every_answer_is_listed_under_its_verdict(evaluated, make_rows, tmp_path):
    found, rows = evaluated(make_rows(prompts=90))
    groups = {group.title: group for group in listed(rows)}
    assert {title: len(group.rows) for title, group in groups.items() if group.rows} == {
        title: count
        for title, count in (("won", found.win_rate.wins), ("lost", found.win_rate.losses), ("tied", found.win_rate.ties))
        if count
    }
    page = Seen(render_report(found, rows, tmp_path)).text
    assert all(row.prompt[0]["content"] in page for row in rows)


def test_verdicts_are_shown_by_both_orders(evaluated, make_rows, tmp_path):
    found, rows = evaluated(make_rows(prompts=30))
    rows[0].verdicts = [Verdict("reward_model", "win"), Verdict("language_model", "tie", ("win", None))]
    rows[1].judge = None
    page = Seen(render_report(found, rows, tmp_path)).text
    assert "language model: tie (shown first win, shown second unreadable)" in page
    assert "not judged: 1" in page
    table = answers_table(rows)
    assert table["language_model"][:2] == ["tie", None]
    assert table["language_model_policy_first"][0] == "win"
    assert table["language_model_rival_first"] == [None] * 30
    assert words.verdict(Verdict("people", "loss")) == "people: loss"
    assert words.verdict(Verdict("language_model", "loss", ("loss", "loss"))) == "language model: loss"


def test_a_long_list_is_cut_in_proportion_and_the_page_stays_small(evaluated, make_rows, tmp_path):
    rows = make_rows(prompts=1500)
    for row in rows:
        row.policy.text = row.sft.text = "long " * 400
    groups = listed(rows, most=150)
    assert sum(len(group.rows) for group in groups) in (148, 149, 150)
    for group in groups:
        everything = sum(row.judge == group.rows[0].judge for row in rows)
        assert len(group.rows) + group.left_out == everything
        assert len(group.rows) == pytest.approx(everything / 10, abs=1)
    found, rows = evaluated(rows)
    assert len(render_report(found, rows, tmp_path)) < 2_000_000


def test_columns_appear_with_their_figures(evaluated, tmp_path):
    found, rows = evaluated()
    bare = [StageLine("sft", "4.0 s", 1.0, "perplexity 2.1")]
    assert "memory</th>" not in render_report(found, rows, tmp_path, WholeRun(stages=bare))
    rich = [StageLine("sft", "4.0 s", 1.0, "perplexity 2.1", memory="1.20 GiB", cost="0.03")]
    page = render_report(found, rows, tmp_path, WholeRun(stages=rich, spent="In all 4 s."))
    assert all(text in page for text in ("memory</th>", "cost</th>", "1.20 GiB", "0.03", "In all 4 s."))


def test_words_name_the_hack(evaluated, make_rows):
    rows = make_rows()
    for row in rows:
        row.policy.own += 2.0
        row.policy.judge -= 2.0
    found, _ = evaluated(rows)
    said = words.over_optimisation(found)
    assert (said.mood, said.head) == ("bad", "Reward hacking: the policy's own reward rose, the independent judge's fell")
    assert words.over_optimisation(evaluated()[0]).mood == "good"


def test_words_doubt_a_judge_no_better_than_length(evaluated):
    found, _ = evaluated()
    assert words.trust_in_judge(found).mood == "good"
    assert words.trust_in_judge(found.model_copy(update={"prefer_longer": 0.2})).mood == "bad"


def test_words_of_numbers():
    assert words.percent(0.7831) == "78.3\u00a0%"
    assert words.number(-0.5) == "−0.50"
    assert words.number(None) == "–"
    assert words.gain_with_interval((1.24, 1.02, 1.455)) == "+1.24 (1.02 to 1.46)"


def test_pictures_are_small_and_whole(evaluated, make_rows, make_rounds, tmp_path):
    found, _ = evaluated(make_rows(prompts=240, tags=tuple(f"tag ${i} \\frac{{" for i in range(30))))
    draw(found, make_rounds(chosen=0), BOOTSTRAP, tmp_path)
    for name in PLOTS:
        assert (tmp_path / name).stat().st_size < 60_000
        with Image.open(tmp_path / name) as picture:
            assert 700 < picture.width < 1200


def test_pictures_of_hardly_anything(evaluated, make_rows, make_rounds, tmp_path):
    """No slices, no truth, a policy that never moved."""
    found, _ = evaluated(make_rows(prompts=3, truth=False))
    rounds = make_rounds()
    still = type(rounds)(0, [rounds.sft])
    draw(found, still, BOOTSTRAP, tmp_path)
    assert all((tmp_path / name).is_file() for name in PLOTS)


def test_a_table_of_all_answers_has_a_row_a_prompt(make_rows):
    rows = make_rows(prompts=4, champion=True)
    table = answers_table(rows)
    assert {len(column) for column in table.values()} == {4}
    assert table["policy"] == [row.policy.text for row in rows]
    assert table["baseline_judge"] == [row.baseline.judge for row in rows]
    assert table["judge"] == [row.judge for row in rows]
    assert "baseline" not in answers_table(make_rows(prompts=4))


def test_answers_are_read_as_written(make_rows, tmp_path):
    for rows in (make_rows(prompts=4, champion=True), make_rows(prompts=4, truth=False)):
        write_answers(tmp_path, rows)
        assert read_answers(tmp_path) == rows
