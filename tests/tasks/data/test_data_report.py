"""The report stage of the data line: figures, annotators and a page that asks nothing of any other place."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tasks.config import BuiltInConfig, DataConfig
from tasks.data.prepare import import_sources, normalise, split
from tasks.data.report import report
from tasks.data.snapshot import SHOP
from tasks.errors import PreflineError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built-in")
    how = BuiltInConfig(demonstrations_per_question=1, rankings_per_question=2, second_opinions=0.5)
    return make(folder, DataConfig(builtin=how))


def make(folder, data):
    import_sources(data, ROOT / SHOP, folder, folder / "imported")
    normalise(data, folder / "imported", folder / "normalised")
    split(data.split, folder / "normalised", folder / "prepared")
    return folder / "prepared"


def test_figures_of_the_built_in_set(built_in, tmp_path):
    report(built_in, tmp_path / "report")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["annotators.json", "data.html", "statistics.json"]
    figures = json.loads((tmp_path / "report" / "statistics.json").read_text())
    records = [json.loads(line) for line in (built_in / "comparisons.jsonl").read_text().splitlines()]
    counted = json.loads((built_in / "counts.json").read_text())
    assert figures["comparisons"]["rows"] == counted["comparisons"]["rows"] == len(records)
    assert figures["comparisons"]["splits"] == counted["comparisons"]["splits"]
    assert figures["comparisons"]["rankings"] == len({row["ranking"] for row in records})
    assert figures["rejects"]["rows"] == 0
    annotators = json.loads((tmp_path / "report" / "annotators.json").read_text())
    names = {row["annotator"] for row in records}
    assert {card["name"] for card in annotators["scorecards"]} == names == set(figures["comparisons"]["annotators"])
    assert sum(card["comparisons"] for card in annotators["scorecards"]) == len(records)


def test_the_page_is_whole_by_itself(built_in, tmp_path):
    report(built_in, tmp_path / "report")
    page = (tmp_path / "report" / "data.html").read_text()
    assert "What the data are like" in page
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    assert not re.findall(r'(?:src|href|action)="(?!data:)', page)
    assert "default-src 'none'" in page
    assert "rules were checked" not in page


def test_equal_data_give_equal_bytes_and_an_older_report_gives_way(built_in, tmp_path):
    report(built_in, tmp_path / "report")
    first = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    (tmp_path / "report" / "old.txt").write_text("old")
    (tmp_path / ".report.partial").mkdir()
    report(built_in, tmp_path / "report")
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == first


def test_a_report_that_fails_leaves_the_older_one(built_in, tmp_path):
    report(built_in, tmp_path / "report")
    broken = tmp_path / "broken"
    shutil.copytree(built_in, broken)
    (broken / "counts.json").unlink()
    with pytest.raises(PreflineError, match="no prepared data"):
        report(broken, tmp_path / "report")
    assert (tmp_path / "report" / "data.html").is_file()


def test_hostile_names_are_only_text(tmp_path):
    hostile = '"><img src=x onerror=alert(1)>&amp;{{ 7*7 }}<b>'
    rows = [
        {"prompt": f"{n}?", "chosen": "Yes, it is.", "rejected": "No.", "annotator": hostile, "tags": [hostile], "language": hostile}
        for n in range(30)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(make(tmp_path, DataConfig(comparisons=["mine.jsonl"], demonstrations=["mine.jsonl"])), tmp_path / "report")
    page = (tmp_path / "report" / "data.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;amp;{{ 7*7 }}&lt;b&gt;" in page
