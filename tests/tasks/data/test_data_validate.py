"""The validate stage on data from files to refusal."""

import json
from pathlib import Path

import pytest

from tasks.config import DataConfig, PipelineConfig, SplitConfig
from tasks.data.dvc_store import folder_md5
from tasks.data.findings import KEPT, Finding, Offender, refusal
from tasks.data.prepare import import_sources, normalise, split
from tasks.data.snapshot import SHOP, SNAPSHOT, Snapshot
from tasks.data.validate import validate
from tasks.errors import EXIT_DATA_REFUSED, DataRefused, PreflineError
from tasks.stage import Context, StageResult

ROOT = Path(__file__).parents[3]
RULES = 54


def rows(count, **more):
    texts = ("Yes, it is.", "No.")
    return [{"prompt": f"Question {n}?", "chosen": texts[n % 2], "rejected": texts[1 - n % 2]} | more for n in range(count)]


def prepared(config, root, folder):
    """The data of the configuration as a snapshot's result would have them, in folder/data."""
    import_sources(config.data, ROOT / SHOP, root, folder / "imported")
    normalise(config.data, folder / "imported", folder / "normalised")
    split(config.data.split, folder / "normalised", folder / "data")
    result = StageResult(stage="snapshot", key="k", path=folder / "snapshot", digest="d", metrics={}, seconds=0)
    result.path.mkdir(exist_ok=True)
    seen = Snapshot(folder="data", md5=folder_md5(folder / "data"), comparisons=0, demonstrations=0, rejects=0, splits={})
    (result.path / SNAPSHOT).write_text(seen.model_dump_json())
    return result


def base(tokenizer, folder):
    tokenizer.save_pretrained(folder / "base" / "model")
    return StageResult(stage="base", key="k", path=folder / "base", digest="d", metrics={}, seconds=0)


@pytest.fixture
def checked(tmp_path, tokenizer):
    """checked(rows) -> the validate stage's result on comparisons with those rows, their chosen answers as demonstrations."""

    def run(content, max_tokens=128, **contract):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in content]
        (tmp_path / "mine.jsonl").write_text("".join(f"{line}\n" for line in lines))
        data = DataConfig(comparisons=["mine.jsonl"], demonstrations=["mine.jsonl"], near_duplicates=0, split=SplitConfig())
        limits = {"min_comparisons": 20, "min_demonstrations": 5} | contract
        config = PipelineConfig(data=data, contract=limits, max_tokens=max_tokens, max_new_tokens=16)
        inputs = {"data": prepared(config, tmp_path, tmp_path), "base": base(tokenizer, tmp_path)}
        return validate.run(config, inputs, Context(tmp_path, tmp_path / "runs"))

    return run


def broken_rules(folder):
    return {rule["rule"]: rule for rule in json.loads((folder / "validation.json").read_text())["rules"] if not rule["passed"]}


def failed(tmp_path):
    (folder,) = (tmp_path / "runs" / "stages" / "validate").glob("*.failed")
    return folder


def test_sound_data(checked):
    result = checked(rows(60))
    figures = {"comparisons": 60, "demonstrations": 60, "rules": RULES, "warnings": 0, "annotators": 0, "longer_chosen": 0.5}
    assert result.metrics == figures
    body = json.loads((result.path / "validation.json").read_text())
    assert body["passed"]
    assert all(rule["passed"] for rule in body["rules"])
    assert (result.path / "rejects.jsonl").read_text() == ""
    assert "**broken**" not in (result.path / "validation.md").read_text()
    assert "no pair was judged by two" in (result.path / "annotators.md").read_text()
    assert f"{RULES} rules were checked: all of them hold." in (result.path / "data.html").read_text()
    assert checked(rows(60)).skipped == "unchanged"


def test_broken_data_are_refused_by_file_and_line(checked, tmp_path):
    content = [*rows(60), {"prompt": "Same?", "chosen": "Yes.", "rejected": "Yes."}, *rows(3, chosen=""), "{cut"]
    with pytest.raises(DataRefused) as refused:
        checked(content, rejected_share=0.2)
    assert refused.value.exit_code == EXIT_DATA_REFUSED
    what, *advice = str(refused.value).splitlines()
    folder = failed(tmp_path)
    assert what == 'mine.jsonl, line 61: "chosen" and "rejected" are the same text.'
    assert advice[0].endswith("allow up to N of them with contract.identical_pairs.max.")
    assert advice[1] == f"  1 of 61 rows; all of them are listed in {folder.relative_to(tmp_path)}/rejects.jsonl."
    assert advice[2] == f"  All of it as a page: {folder.relative_to(tmp_path)}/data.html."
    listed = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [(row["rule"], row["line"]) for row in listed] == [
        *(("counts.rejected_comparisons", line) for line in ("62", "63", "64", "65")),
        ("comparisons.identical_pairs", "61"),
    ]
    assert not json.loads((folder / "validation.json").read_text())["passed"]
    assert (
        (folder / "validation.md")
        .read_text()
        .startswith("| | rule | found | allowed |\n|-|-|-|-|\n| **broken** | comparisons: identical pairs | 1 |")
    )
    assert (folder / "data_docs" / "index.html").is_file()
    assert checked(content, rejected_share=0.2, identical_pairs={"max": 1}).metrics["warnings"] == 0


def test_rejected_rows_name_the_share_and_the_first_of_them(checked, tmp_path):
    with pytest.raises(DataRefused) as refused:
        checked([*rows(60), *rows(3, chosen="")])
    lines = str(refused.value).splitlines()
    assert lines[0] == 'mine.jsonl, line 61: "chosen" is empty.'
    assert lines[1] == "  4.76 % of the rows in data.comparisons could not be used, where at most 1 % are allowed."
    assert lines[3].startswith("  3 of 63 rows; all of them are listed in ")
    page = (failed(tmp_path) / "data.html").read_text()
    assert "mine.jsonl, line 61: &#34;chosen&#34; is empty" in page
    assert "Question 0?" in page  # the row itself


def test_too_few_rows(checked):
    with pytest.raises(DataRefused) as refused:
        checked(rows(40), min_comparisons=100)
    assert str(refused.value).splitlines()[:2] == [
        "40 comparisons, where at least 100 are needed.",
        "  Add some to data.comparisons, or lower contract.min_comparisons.",
    ]


def test_a_warning_lets_the_run_go_on(checked):
    content = rows(40, annotator="ana")
    other_way = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in content[:4]]
    result = checked([*content, *other_way])
    assert result.metrics["warnings"] == 1
    warned = broken_rules(result.path)["comparisons.contradictions"]
    assert (warned["severity"], warned["rows"]) == ("warn", 8)
    assert "Accepted with warnings" in (result.path / "data.html").read_text()


def test_pages_hold_texts_and_names_as_text_only(checked, tmp_path):
    hostile = "<script>alert(1)</script>"
    content = [row | {"prompt": f"{hostile} {n}", "annotator": f"{hostile}|`x`", "id": f"{hostile} {n}"} for n, row in enumerate(rows(60))]
    content.append(content[0] | {"id": "same", "rejected": f"{hostile} a@b.co", "chosen": f"{hostile} a@b.co"})
    with pytest.raises(DataRefused):
        checked(content)
    folder = failed(tmp_path)
    pages = list((folder / "data_docs").rglob("*.html"))
    assert len(pages) == 7
    assert not any("alert(1)" in page.read_text() for page in pages)
    assert sum(path.stat().st_size for path in (folder / "data_docs").rglob("*") if path.is_file()) < 1_000_000
    page = (folder / "data.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 0" in page
    assert "<script" not in page
    assert "a@b.co" not in page  # a person's address stays where it is
    assert "<script" not in (folder / "annotators.md").read_text()


def test_what_only_the_evaluation_may_ask(checked, tmp_path):
    """The prompts of questions 3 and 30, here with and without an answer, and in a row that gives no record."""
    (tmp_path / "exam.jsonl").write_text('{"prompt": "question 3"}\n{"instruction": "QUESTION 30!", "output": "Yes."}\n')
    (tmp_path / "mt.jsonl").write_text('{"turns": ["Tell me of the sea.", "And question, 31?"]}\n')
    with pytest.raises(DataRefused) as refused:
        checked(rows(60), evaluation_sets=["exam.jsonl", "mt.jsonl"])
    found = broken_rules(failed(tmp_path))["comparisons.contaminated"]
    in_test = {
        json.loads(line)["source_id"]
        for line in (tmp_path / "data" / "comparisons.jsonl").read_text().splitlines()
        if json.loads(line)["split"] == "test"
    }
    assert {row["line"] for row in found["first"]} == {"4", "31"} - in_test
    assert "is in an evaluation set" in str(refused.value)
    assert checked(rows(60), evaluation_sets=["exam.jsonl"], contaminated={"max": 4}).metrics["warnings"] == 0
    assert checked(rows(60), evaluation_sets=["mt.jsonl"]).metrics["warnings"] == 0


def test_an_evaluation_set_without_prompts(checked, tmp_path):
    (tmp_path / "exam.jsonl").write_text('{"answer": "Yes."}\n')
    with pytest.raises(PreflineError, match=r"exam.jsonl: no prompts in this evaluation set") as refused:
        checked(rows(60), evaluation_sets=["exam.jsonl"])
    assert "contract.evaluation_sets" in refused.value.advice


def test_texts_that_only_counting_can_judge(checked, tmp_path):
    long = "Yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes."
    with pytest.raises(DataRefused, match=r"line 61: prompt and answer are longer than max_tokens"):
        checked([*rows(60), {"prompt": "Is it?", "chosen": "No.", "rejected": long}], max_tokens=40)
    assert broken_rules(failed(tmp_path))["comparisons.over_length"]["rows"] == 1


def test_an_error_lists_only_so_much():
    broken = [
        Finding(
            f"rule {n}",
            "comparisons",
            "stop",
            False,
            "1",
            "none",
            "it is bad",
            "Mend it.",
            9_000,
            20_000,
            [Offender("r", "a.jsonl", "1", "it is bad")],
        )
        for n in range(12)
    ]
    text = str(refusal(broken, "runs/rejects.jsonl", "runs/data.html"))
    assert len(text.splitlines()) == 14
    assert f"9,000 of 20,000 rows; up to {KEPT:,} are listed in runs/rejects.jsonl." in text
    assert text.splitlines()[-2:] == ["  - and 3 more.", "  All of it as a page: runs/data.html."]


def test_the_shipped_broken_data_are_refused_by_rows(tmp_path, tokenizer):
    """data/broken.jsonl breaks rules that name its rows, and nothing about their number."""
    from flows.settings import load_config

    config = load_config(ROOT, [ROOT / "overlays" / "broken-data.yaml"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"demonstrations": config.data.comparisons})})
    with pytest.raises(DataRefused, match=r"^data/broken.jsonl, line \d+: "):
        validate.run(
            config,
            {"data": prepared(config, ROOT, tmp_path), "base": base(tokenizer, tmp_path)},
            Context(tmp_path, tmp_path / "runs"),
        )
    broken = broken_rules(failed(tmp_path))
    names = ("identical_pairs", "roles", "assistant_answers", "split", "longer_chosen", "duplicates", "turns")
    assert {"counts.rejected_comparisons", *(f"comparisons.{name}" for name in names)} <= set(broken)
    assert not any(rule.startswith(("counts.enough", "counts.some_comparisons")) for rule in broken)
