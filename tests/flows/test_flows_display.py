"""What people see: figures, progress, the summary."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.compare import comparison_table
from flows.figures import duration, main_figures, number
from flows.progress import BarDisplay, PlainDisplay, progress_display
from flows.record import RunRecord, StageRecord
from flows.summary import costs_line, decision_line, gate_rows, markdown, print_summary
from tasks.registry.decision import Decision
from tasks.registry.gates import Gate
from tasks.stage import StageResult

GATES = [
    Gate(name="win rate over SFT model", required="lower bound above 0.50", found="0.400 (0.300 to 0.500)", passed=False),
    Gate(name="git tree", required="clean", found="clean", passed=True),
]


def decision(kind, previous=None):
    return Decision(decision=kind, model="policy", version="2", previous=previous, gates=GATES, reasons=[])


@pytest.fixture
def record():
    return RunRecord(
        run="2026-11-25-083516-ab12",
        what="run",
        state="finished",
        started="",
        seconds=100.0,
        commit="a" * 40,
        dirty=True,
        config_hash="abc",
        config={},
        mlflow_url="http://127.0.0.1:5000/#/x",
        stages=[
            StageRecord(name="sft", state="done", seconds=61.0, metrics={"perplexity": 2.514}),
            StageRecord(name="policy", state="skipped", skipped="unchanged", metrics={"kl": 1.9}),
            StageRecord(name="evaluate", state="waiting"),
        ],
        decision=decision("not promoted"),
        costs={"prefect": 6.0, "mlflow": 4.0},
    )


def printed(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_two_runs_side_by_side(record):
    first = record.model_copy(update={"config": {"seed": 0, "policy": {"rounds": 24, "kl": {"weight": 0.1}}}})
    stages = [StageRecord(name="sft", state="done", seconds=30.0, metrics={"perplexity": 2.0}), *record.stages[1:]]
    config = {"seed": 0, "policy": {"rounds": 30, "kl": {"weight": 0.1}}}
    later = record.model_copy(update={"config": config, "stages": stages, "run": "later", "seconds": 80.0})
    lines = printed(comparison_table(first, later))
    assert "policy.rounds 24 30" in lines
    assert not any("seed" in line or "weight" in line for line in lines)
    assert "sft: perplexity 2.51 2 -0.514" in lines
    assert "policy: kl 1.9 1.9 +0" in lines
    assert "took 1 min 40 s 1 min 20 s -20.0 s" in lines
    assert "decision not promoted, version 2 not promoted, version 2" in lines


@pytest.mark.parametrize(
    ("value", "text"), [(3684.0, "3,684"), (0.46712, "0.467"), (12345.6, "12,346"), (-0.5, "-0.5"), (1e-5, "1e-05"), (0.0, "0")]
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3700, "1 h 1 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_stage_that_nobody_listed_shows_its_first_three():
    assert main_figures("mine", {"a": 1.0, "b_c": 2.0, "d": 3.0, "e": 4.0}) == "a 1 · b c 2 · d 3"
    assert main_figures("evaluate", {"prompts": 300.0, "win_rate": 0.5, "kl": 2.0}) == "win rate 0.5 · kl 2"
    assert main_figures("evaluate dpo", {"prompts": 300.0, "win_rate": 0.5, "kl": 2.0}) == "win rate 0.5 · kl 2"


def test_decisions_in_words():
    assert decision_line(decision("promoted")) == "policy version 2 is the new champion, the first."
    assert decision_line(decision("promoted", "1")) == "policy version 2 is the new champion, after version 1."
    assert decision_line(decision("already champion")) == "policy version 2 is the champion already."
    assert decision_line(decision("not promoted")) == "policy version 2 is not promoted: win rate over SFT model. It stays challenger."


def test_the_summary_has_stages_gates_decision_costs_and_places(record, tmp_path):
    out = io.StringIO()
    print_summary(record, tmp_path, Console(file=out, width=120))
    text = out.getvalue()
    for part in (
        "✓ sft",
        "1 min 1 s",
        "perplexity 2.51",
        "unchanged",
        "✗ win rate over SFT model",
        "0.400 (0.300 to 0.500)",
        "not promoted",
    ):
        assert part in text
    assert "Prefect 6.0 s, MLflow 4.0 s, DVC 0.0 s, Great Expectations 0.0 s; together 10.0 s, 10% of the run." in costs_line(record)
    assert "prefline ui" in text


def test_the_markdown_has_the_same(record):
    text = markdown(record)
    assert text.startswith("**policy version 2 is not promoted")
    assert "| ✗ win rate over SFT model | lower bound above 0.50 | 0.400 (0.300 to 0.500) |" in text
    assert "| policy | unchanged | kl 1.9 |" in text
    assert "with changes" in text
    assert gate_rows(record.decision)[1] == {"gate": "git tree", "required": "clean", "found": "clean", "passed": "yes"}


def result(skipped=""):
    return StageResult(stage="sft", key="k", path=Path(), digest="d", metrics={"loss": 0.5}, seconds=2.0, skipped=skipped)


def watch(display):
    with display:
        display.started("sft", "k", {})
        display.progressed("sft", 1, 2, {"loss": 1.0})
        display.progressed("sft", 2, 2, {})
        display.finished(result())
        display.finished(result("unchanged"))
        display.started("policy", "k", {})
        display.failed("policy", RuntimeError())


def test_plain_lines_for_logs():
    out = io.StringIO()
    display = progress_display(Console(file=out))
    assert isinstance(display, PlainDisplay)
    watch(display)
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["sft", "begins"],
        ["sft", "2.0", "s", "loss", "0.5"],
        ["sft", "unchanged", "loss", "0.5"],
        ["policy", "begins"],
        ["policy", "failed"],
    ]


def test_bars_for_people():
    out = io.StringIO()
    display = progress_display(Console(file=out, force_terminal=True, width=120))
    assert isinstance(display, BarDisplay)
    watch(display)
    text = out.getvalue()
    assert "loss 0.5" in text
    assert "unchanged" in text
    assert "policy              failed" in text
