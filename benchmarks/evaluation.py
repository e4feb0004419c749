"""What an evaluation takes: `python benchmarks/evaluation.py [--profile]` on an otherwise idle machine.

500 held-out prompts, answered by policy and SFT model, scored by the policy's own reward model, by the independent judge and by
gold; with best-of-n, slices, probes, intervals, pictures and page. The built-in set has half as many test prompts, so it is drawn
larger: the same definition with 34 items instead of 12. The models are those of the line, tiny-llama, trained for less long: what
is timed is the evaluation alone. Its seconds, those of building the page (as a run does at its end, with its gates), and the bytes
of the page go to benchmarks/results/evaluation.json. --profile prints where the seconds went, and keeps nothing.
"""

from __future__ import annotations

import cProfile
import json
import platform
import pstats
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from flows.settings import load_config
from tasks.config import PipelineConfig
from tasks.data.dvc_store import folder_md5
from tasks.data.prepare import import_sources, normalise, split
from tasks.data.snapshot import Snapshot
from tasks.evaluation.answers import read_answers
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.report import WholeRun, render_markdown, render_report
from tasks.evaluation.result import Evaluation
from tasks.registry.baseline import Baseline
from tasks.registry.gates import Facts, check_gates, read_policy
from tasks.stage import Context, StageResult
from tasks.training.policy import optimise_policy
from tasks.training.processes import use_threads
from tasks.training.scorers import train_judge, train_reward_model
from tasks.training.stages import base_model, train_sft

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evaluation.json"
PROMPTS = 500
ITEMS = "bench cabinet carpet curtain drawer hammer jug ladder mop oven pan pillow plate printer quilt rack saw sofa stool tent towel tray"
QUICK = (
    "data.builtin.demonstrations_per_question=6",
    "data.builtin.rankings_per_question=2",
    "sft.epochs=3",
    "policy.rounds=6",
    "policy.judge_every=1",
    f"evaluation.prompts={PROMPTS}",
)
"""Enough for answers of the right form and length."""


def make_data(config: PipelineConfig, root: Path) -> StageResult:
    """The larger shop, divided as the line divides it."""
    definition = yaml.safe_load((ROOT / "data" / "shop.yaml").read_text(encoding="utf-8"))
    definition["items"] += ITEMS.split()
    (root / "shop.yaml").write_text(yaml.safe_dump(definition, sort_keys=False), encoding="utf-8")
    import_sources(config.data, root / "shop.yaml", root, root / "imported")
    normalise(config.data, root / "imported", root / "normalised")
    split(config.data.split, root / "normalised", root / "data" / "prepared")
    shutil.copytree(ROOT / "data" / "probes", root / "data" / "probes")
    md5 = folder_md5(root / "data" / "prepared")
    seen = Snapshot(folder=Path("data/prepared"), md5=md5, comparisons=0, demonstrations=0, rejects=0, splits={})
    (root / "snapshot").mkdir()
    (root / "snapshot" / "snapshot.json").write_text(seen.model_dump_json(), encoding="utf-8")
    return StageResult(stage="snapshot", key=md5, path=root / "snapshot", digest=md5, metrics={}, seconds=0.0)


def train(config: PipelineConfig, root: Path) -> dict[str, StageResult]:
    """What the stages before evaluate leave; a folder in which they lie is used again."""
    context = Context(root, root / "runs")
    found = {"data": make_data(config, root)}
    for stage in (base_model, train_sft, train_reward_model, train_judge, optimise_policy):
        found[stage.name] = stage.run(config, {name: found[name] for name in stage.inputs}, context)
        print(f"{stage.name}: {found[stage.name].seconds:.0f} s", flush=True)
    (root / "baseline").mkdir()
    Baseline().save(root / "baseline")
    found["baseline"] = StageResult(stage="baseline", key="sft", path=root / "baseline", digest="sft", metrics={}, seconds=0.0)
    return found


def time_evaluation(config: PipelineConfig, inputs: dict[str, StageResult], root: Path) -> StageResult:
    """The stage, done anew."""
    context = Context(root, root / "runs", force=frozenset({"evaluate"}))
    return evaluate.run(config, {name: inputs[name] for name in evaluate.inputs}, context)


def time_page(evaluated: StageResult) -> dict[str, Any]:
    """Page and Markdown from what the stage left, as at the end of a run."""
    begun = time.monotonic()
    found, rows = Evaluation.load(evaluated.path), read_answers(evaluated.path)
    gates = check_gates(found, read_policy(ROOT / "mlflow" / "promotion.yaml"), Facts())
    whole = WholeRun(gates=gates, lineage={"evaluation": evaluated.digest})
    page = render_report(found, rows, evaluated.path, whole)
    render_markdown(found, rows, whole)
    return {"page_seconds": round(time.monotonic() - begun, 2), "page_bytes": len(page.encode())}


def main(profile: bool) -> None:
    config = load_config(ROOT, [], list(QUICK))
    threads = use_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = train(config, root)
        watch = cProfile.Profile()
        if profile:
            watch.enable()
        evaluated = time_evaluation(config, inputs, root)
        if profile:
            watch.disable()
            pstats.Stats(watch).sort_stats("cumulative").print_stats(60)
        found = Evaluation.load(evaluated.path)
        assert found.prompts == PROMPTS
        assert found.win_rate_gold
        figures = {"seconds": round(evaluated.seconds, 1), "prompts": found.prompts, "answers": 2 * found.prompts} | time_page(evaluated)
    print(json.dumps(figures))
    if not profile:
        machine = {"cores": psutil.cpu_count(), "threads": threads, "python": platform.python_version(), "torch": torch.__version__}
        RESULTS.write_text(json.dumps(figures | machine, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("--profile" in sys.argv[1:])
