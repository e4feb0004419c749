"""The validate stage on data from files to refusal."""

import json
from pathlib import Path

import pytest

from tasks.config import DataConfig, PipelineConfig, SplitConfig
from tasks.data.dvc_store import folder_md5
from tasks.data.prepare import normalise, split
from tasks.data.snapshot import SNAPSHOT, Snapshot
from tasks.data.validate import KEPT, Finding, Offender, refusal, validate
from tasks.errors import EXIT_DATA_REFUSED, DataRefused
from tasks.stage import Context, StageResult

ROOT = Path(__file__).parents[3]


def rows(count, **more):
    texts = ("Yes, it is.", "No.")
    return [{"prompt": f"Question {n}?", "chosen": texts[n % 2], "rejected": texts[1 - n % 2]} | more for n in range(count)]


@pytest.fixture
def checked(tmp_path, tokenizer):
    """checked(rows) -> the validate stage's result on comparisons with those rows, their chosen answers as demonstrations."""

    def run(content, **contract):
        (tmp_path / "mine.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))
        normalise(DataConfig(comparisons=["mine.jsonl"], demonstrations=["mine.jsonl"]), tmp_path, tmp_path, tmp_path / "imported")
        split(SplitConfig(), tmp_path / "imported", tmp_path / "data")
        result = StageResult(stage="snapshot", key="k", path=tmp_path / "snapshot", digest="d", metrics={}, seconds=0)
        result.path.mkdir(exist_ok=True)
        seen = Snapshot(folder="data", md5=folder_md5(tmp_path / "data"), comparisons=0, demonstrations=0, rejects=0, splits={})
        (result.path / SNAPSHOT).write_text(seen.model_dump_json())
        tokenizer.save_pretrained(tmp_path / "base" / "model")
        base = StageResult(stage="base", key="k", path=tmp_path / "base", digest="d", metrics={}, seconds=0)
        config = PipelineConfig(contract={"min_comparisons": 20, "min_demonstrations": 5} | contract)
        return validate.run(config, {"data": result, "base": base}, Context(tmp_path, tmp_path / "runs"))

    return run


def test_sound_data(checked):
    result = checked(rows(60))
    assert result.metrics == {"comparisons": 60, "demonstrations": 60, "rules": 29, "warnings": 0}
    body = json.loads((result.path / "validation.json").read_text())
    assert body["passed"]
    assert all(rule["passed"] for rule in body["rules"])
    assert (result.path / "rejects.jsonl").read_text() == ""
    assert "**broken**" not in (result.path / "validation.md").read_text()


def test_broken_data_are_refused_by_file_and_line(checked, tmp_path):
    content = [*rows(60), {"prompt": "Same?", "chosen": "Yes.", "rejected": "Yes."}, *rows(3, chosen=""), "{cut"]
    with pytest.raises(DataRefused) as refused:
        checked(content, rejected_share=0.2)
    assert refused.value.exit_code == EXIT_DATA_REFUSED
    what, *advice = str(refused.value).splitlines()
    failed = next((tmp_path / "runs" / "stages" / "validate").glob("*.failed"))
    assert what == 'mine.jsonl, line 61: "chosen" and "rejected" are the same text.'
    assert advice[0].endswith("allow up to N of them with contract.identical_pairs.max.")
    assert advice[1] == f"  1 of 61 rows; all of them are listed in {failed.relative_to(tmp_path)}/rejects.jsonl."
    listed = [json.loads(line) for line in (failed / "rejects.jsonl").read_text().splitlines()]
    assert [(row["rule"], row["line"]) for row in listed] == [
        *(("counts.rejected_comparisons", line) for line in ("62", "63", "64", "65")),
        ("comparisons.identical_pairs", "61"),
    ]
    assert not json.loads((failed / "validation.json").read_text())["passed"]
    assert (
        (failed / "validation.md")
        .read_text()
        .startswith("| | rule | found | allowed |\n|-|-|-|-|\n| **broken** | comparisons: identical pairs | 1 |")
    )
    assert (failed / "data_docs" / "index.html").is_file()
    assert checked(content, rejected_share=0.2, identical_pairs={"max": 1}).metrics["warnings"] == 0


def test_rejected_rows_name_the_share_and_the_first_of_them(checked):
    with pytest.raises(DataRefused) as refused:
        checked([*rows(60), *rows(3, chosen="")])
    lines = str(refused.value).splitlines()
    assert lines[0] == 'mine.jsonl, line 61: "chosen" is empty.'
    assert lines[1] == "  4.76 % of the rows in data.comparisons could not be used, where at most 1 % are allowed."
    assert lines[3].startswith("  3 of 63 rows; all of them are listed in ")


def test_too_few_rows(checked):
    with pytest.raises(DataRefused) as refused:
        checked(rows(40), min_comparisons=100)
    assert str(refused.value).splitlines() == [
        "40 comparisons, where at least 100 are needed.",
        "  Add some to data.comparisons, or lower contract.min_comparisons.",
    ]


def test_a_warning_lets_the_run_go_on(checked):
    content = rows(40, annotator="ana")
    other_way = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in content[:4]]
    result = checked([*content, *other_way])
    assert result.metrics["warnings"] == 1
    warned = [rule for rule in json.loads((result.path / "validation.json").read_text())["rules"] if not rule["passed"]]
    assert [(rule["rule"], rule["severity"], rule["rows"]) for rule in warned] == [("comparisons.contradictions", "warn", 8)]


def test_data_docs_hold_no_text_and_no_name_from_the_data(checked):
    hostile = "<script>alert(1)</script>"
    content = [row | {"prompt": f"{hostile} {n}", "annotator": hostile, "id": f"{hostile} {n}"} for n, row in enumerate(rows(60))]
    result = checked(content)
    pages = list((result.path / "data_docs").rglob("*.html"))
    assert len(pages) == 7
    assert not any("alert(1)" in page.read_text() for page in pages)
    assert sum(path.stat().st_size for path in (result.path / "data_docs").rglob("*") if path.is_file()) < 1_000_000


def test_the_same_data_twice(checked):
    first = checked(rows(60))
    assert checked(rows(60)).skipped == "unchanged"
    assert first.metrics["rules"] == 29


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
    text = str(refusal(broken, "runs/rejects.jsonl"))
    assert len(text.splitlines()) == 13
    assert f"9,000 of 20,000 rows; up to {KEPT:,} are listed in runs/rejects.jsonl." in text
    assert text.splitlines()[-1] == "  - and 3 more, in validation.json there."


def test_the_shipped_broken_data_are_refused_by_rows(tmp_path, tokenizer):
    """data/broken.jsonl breaks rules that name its rows, and nothing about their number."""
    from flows.settings import load_config

    config = load_config(ROOT, [ROOT / "overlays" / "broken-data.yaml"])
    normalise(config.data.model_copy(update={"demonstrations": config.data.comparisons}), tmp_path, ROOT, tmp_path / "imported")
    split(config.data.split, tmp_path / "imported", tmp_path / "data")
    result = StageResult(stage="snapshot", key="k", path=tmp_path, digest="d", metrics={}, seconds=0)
    seen = Snapshot(folder="data", md5=folder_md5(tmp_path / "data"), comparisons=0, demonstrations=0, rejects=0, splits={})
    (tmp_path / SNAPSHOT).write_text(seen.model_dump_json())
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(DataRefused, match=r"^data/broken.jsonl, line \d+: "):
        validate.run(config, {"data": result, "base": result}, Context(tmp_path, tmp_path / "runs"))
    failed = next((tmp_path / "runs" / "stages" / "validate").glob("*.failed"))
    broken = {rule["rule"] for rule in json.loads((failed / "validation.json").read_text())["rules"] if not rule["passed"]}
    assert broken >= {
        "counts.rejected_comparisons",
        *(f"comparisons.{name}" for name in ("identical_pairs", "roles", "assistant_answers", "split", "longer_chosen", "duplicates")),
    }
    assert not any(rule.startswith(("counts.enough", "counts.some_comparisons")) for rule in broken)
