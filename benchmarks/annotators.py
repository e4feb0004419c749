"""Does reliability pay? `python benchmarks/annotators.py [SEED ...]`: a reward model from the built-in set with a third of its
labels careless, all comparisons counting alike, against one with `weights: annotator`.

Cases: the built-in careless annotator, who is still right in two pairs of three, with as many rankings as the set has and
with fewer; and one who clicks at random, with fewer. Where there are plenty, labels are not what holds the model back.
Each seed makes other data, another base model and another order of training; both reward models share them. Accuracy is
on gold: the share of held-out pairs of answers, of prompts that nobody trained on, whose truly better one scores higher.
Figures by case and seed go to benchmarks/results/annotators.json, a row of the docs' table a seed to the terminal.
`--case NAME` takes one case only; `--small` runs through in a minute; its figures mean nothing and are not kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from scipy.stats import t

from flows.settings import load_config
from tasks.config import PipelineConfig
from tasks.data.annotators import study
from tasks.data.dvc_store import folder_md5
from tasks.data.encoding import encode_answer, encode_prompt, load_tokenizer
from tasks.data.prepare import import_sources, normalise, split
from tasks.data.records import assistant, user
from tasks.data.shop import Shop
from tasks.data.snapshot import Dataset, Snapshot
from tasks.data.tables import comparison_table
from tasks.stage import Context, StageResult
from tasks.training.ensemble import load_scorer
from tasks.training.intervals import Bootstrap, mean_interval, outcomes_of
from tasks.training.models import score_texts
from tasks.training.scorers import WEIGHTS, train_reward_model
from tasks.training.stages import base_model, train_sft

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "annotators.json"
SHARES = {"expert": 20, "regular": 37, "careless": 100 / 3, "wordlover": 10}
"""Of the rankings, in hundredths or about: a third are careless."""
CASES = {"careless": (0.3, 16), "careless, few": (0.3, 6), "clicking, few": (0.0, 6)}
"""Skill of the careless annotator, and rankings a question."""
ARMS = ("none", "annotator")
CONFIDENCE = 0.95


def configuration(case: str, seed: int, small: bool) -> PipelineConfig:
    changes = [f"seed={seed}", f"data.builtin.seed={seed}", f"data.builtin.rankings_per_question={CASES[case][1]}"]
    changes += ["reward_model.min_accuracy=0"]  # what is measured is how bad it gets
    if small:
        changes += ["data.builtin.rankings_per_question=1", "data.builtin.demonstrations_per_question=1", "sft.epochs=0.2"]
        changes += ["reward_model.epochs=0.5"]
    return load_config(ROOT, overrides=changes)


def make_data(config: PipelineConfig, case: str, root: Path) -> StageResult:
    """The prepared data in root/data, and what the snapshot stage would say of them."""
    definition = yaml.safe_load((ROOT / "data" / "shop.yaml").read_text(encoding="utf-8"))
    for name, share in SHARES.items():
        definition["annotators"][name]["share"] = share
    definition["annotators"]["careless"]["skill"] = CASES[case][0]
    (root / "shop.yaml").write_text(yaml.safe_dump(definition, sort_keys=False), encoding="utf-8")
    import_sources(config.data, root / "shop.yaml", root, root / "imported")
    normalise(config.data, root / "imported", root / "normalised")
    split(config.data.split, root / "normalised", root / "data")
    md5 = folder_md5(root / "data")
    seen = Snapshot(folder=Path("data"), md5=md5, comparisons=0, demonstrations=0, rejects=0, splits={})
    (root / "snapshot").mkdir()
    (root / "snapshot" / "snapshot.json").write_text(seen.model_dump_json(), encoding="utf-8")
    return StageResult(stage="snapshot", key=md5, path=root / "snapshot", digest=md5, metrics={}, seconds=0.0)


def gold_pairs(data: Dataset) -> list[tuple[str, str, str]]:
    """Question, better and worse answer, by the truth, of every two answers of the test split that were compared."""
    shop = data.shop()
    assert shop is not None
    found = {}
    for row in data.comparisons("test"):
        question, first, second = (messages[-1]["content"] for messages in (row.prompt, row.chosen, row.rejected))
        better, worse = sorted((first, second), key=lambda answer: -_worth(shop, question, answer))
        if _worth(shop, question, better) > _worth(shop, question, worse):
            found[question, better, worse] = None
    return list(found)


def _worth(shop: Shop, question: str, answer: str) -> float:
    return shop.gold(question, answer).utility


def right(model: Path, pairs: list[tuple[str, str, str]]) -> np.ndarray:
    """1 for each pair whose better answer scores higher, 0.5 for a draw, (pairs,)."""
    tokenizer, scorer = load_tokenizer(model), load_scorer(model).eval()
    texts = [
        [*encode_prompt(tokenizer, [user(question)]), *encode_answer(tokenizer, [user(question)], [assistant(answer)])]
        for question, *answers in pairs
        for answer in answers
    ]
    scores = np.array(score_texts(scorer, texts))
    return outcomes_of(scores[::2], scores[1::2])


def measure(case: str, seed: int, small: bool, root: Path) -> dict[str, Any]:
    config = configuration(case, seed, small)
    snapshot = make_data(config, case, root)
    context = Context(root, root / "runs")
    data = Dataset(root / "data", snapshot.digest)
    train = comparison_table(data.comparisons("train"))
    results = {"data": snapshot, "base": base_model.run(config, {"data": snapshot}, context)}
    results["sft"] = train_sft.run(config, results, context)
    pairs = gold_pairs(data)
    questions = [question for question, _, _ in pairs]
    outcomes, weights = {}, {}
    for arm in ARMS:
        told = config.model_copy(update={"reward_model": config.reward_model.model_copy(update={"weights": arm})})
        model = train_reward_model.run(told, {name: results[name] for name in ("data", "sft")}, context)
        outcomes[arm] = right(model.path / "model", pairs)
        if arm == "annotator":
            weights = json.loads((model.path / WEIGHTS).read_text(encoding="utf-8"))
    bootstrap = Bootstrap(confidence=CONFIDENCE)
    return {
        "comparisons": len(train),
        "careless": round(float((train["annotator"] == "careless").mean()), 4),
        "gold_pairs": len(pairs),
        "accuracy": {arm: round(float(outcome.mean()), 4) for arm, outcome in outcomes.items()},
        "gain": [round(value, 4) for value in mean_interval(outcomes["annotator"] - outcomes["none"], questions, bootstrap)],
        "weights": {name: round(weight, 3) for name, weight in sorted(weights.items())},
        "reliability": {card.name: round(card.reliability.value or 0.0, 3) for card in study(train).scorecards},
    }


def over_seeds(found: dict[str, Any]) -> dict[str, Any]:
    """Mean accuracies and the mean gain with Student's interval over seeds: each seed is one experiment."""
    seeds = [one for name, one in found.items() if name.startswith("seed ")]
    gains = np.array([one["gain"][0] for one in seeds])
    half = t.ppf((1 + CONFIDENCE) / 2, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
    return {
        "seeds": len(seeds),
        "accuracy": {arm: round(float(np.mean([one["accuracy"][arm] for one in seeds])), 4) for arm in ARMS},
        "gain": [round(float(value), 4) for value in (gains.mean(), gains.mean() - half, gains.mean() + half)] if len(gains) > 1 else None,
    }


def line(case: str, name: str, one: dict[str, Any]) -> str:
    """A row of the table in docs/benchmarks.md."""
    none, weighted = (f"{one['accuracy'][arm]:.3f}" for arm in ARMS)
    gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(*one["gain"]) if one["gain"] else "one seed"
    return f"| {case} | {name} | {none} | {weighted} | {gain} |"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--small", action="store_true")
    told = parser.parse_args(arguments)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    machine = {"commit": commit, "python": platform.python_version(), "torch": torch.__version__, "cores": psutil.cpu_count()}
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() and not told.small else {}
    for case in [told.case] if told.case else CASES:
        found = results.setdefault(case, {})
        for seed in told.seeds:
            with tempfile.TemporaryDirectory() as folder:
                found[f"seed {seed}"] = machine | measure(case, seed, told.small, Path(folder))
            found["all"] = over_seeds(found)
            if not told.small:
                RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(line(case, f"seed {seed}", found[f"seed {seed}"]), flush=True)
        print(line(case, "all", found["all"]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
