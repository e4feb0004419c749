import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.data_commands import data_app
from tasks.errors import PreflineError

ROOT = Path(__file__).parents[2]
RUN = CliRunner()


def statistics(**more):
    found = {
        "comparisons": {
            "rows": 1234,
            "groups": 2,
            "splits": {"train": 1},
            "sources": {"[bold]odd[/bold].jsonl": 1},
            "tags": {f"tag {n}": n for n in range(30)},
            "annotators": {"ana": 1},
            "words": {"prompt": {"mean": 3.0, "median": 3, "longest": 4}},
            "ties": 0,
            "longer_chosen": None,
        },
        "demonstrations": {"rows": 5, "groups": 2, "splits": {"train": 5}, "sources": {}, "tags": {}, "words": {}},
        "rejects": {"rows": 1, "reasons": {'"chosen" is empty': 1}},
        "repeated": 0,
    }
    return found | more


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("data: {builtin: {demonstrations_per_question: 1, rankings_per_question: 1}}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shop.yaml").write_text((ROOT / "data" / "shop.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_three_commands_make_the_data_and_print_nothing(here):
    for command in ("make", "normalise", "split"):
        done = RUN.invoke(data_app, [command])
        assert (done.exit_code, done.output) == (0, ""), done.exception
    shown = RUN.invoke(data_app, ["show"], env={"COLUMNS": "140"}).output
    rows = json.loads((here / "data" / "prepared" / "statistics.json").read_text())["comparisons"]["rows"]
    assert f"{rows:,}" in shown


def test_show_takes_names_literally_and_not_too_many(here):
    (here / "data" / "prepared").mkdir()
    (here / "data" / "prepared" / "statistics.json").write_text(json.dumps(statistics()))
    shown = RUN.invoke(data_app, ["show"], env={"COLUMNS": "140"}).output
    assert "from [bold]odd[/bold].jsonl" in shown
    assert "1,234" in shown
    assert "... 10 more" in shown


def test_show_without_data_says_what_to_do(here):
    failed = RUN.invoke(data_app, ["show"])
    assert isinstance(failed.exception, PreflineError)
    assert "prefline stage snapshot" in failed.exception.advice


def test_contract_is_printed_or_written(here):
    printed = RUN.invoke(data_app, ["contract"]).output
    assert RUN.invoke(data_app, ["contract", "--write"]).output == ""
    assert (here / "data" / "contract.json").read_text() == printed == (ROOT / "data" / "contract.json").read_text()


def test_output_goes_to_the_log_that_is_asked_for(here):
    import subprocess
    import sys

    log = here / "log"
    script = "from flows.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "data", "show"],
        env=os.environ | {"PREFLINE_COMMAND_LOG": str(log), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0, done.stdout, done.stderr) == (True, "", "")
    assert "no statistics there" in log.read_text()
