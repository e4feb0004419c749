"""Stage best_of_n: what the best of n answers of the SFT model would score on the held-out prompts, for a comparison of methods."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path

from tasks.data.snapshot import dataset
from tasks.evaluation.answers import Vocabulary
from tasks.evaluation.evaluate import held_out
from tasks.evaluation.selection import onlooker_on
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage
from tasks.training.best_of_n import BestOfN, best_of_n_curve

CURVE = "best_of_n.json"

NS = (1, 2, 4, 8, 16)
ANSWERS = 2 * NS[-1]
"""To each prompt: more than the largest n, so that it is an estimate over many draws of n, and not one draw."""


@stage("best_of_n", reads=("seed", "max_tokens", "max_new_tokens", "evaluation"), package="evaluation")
def best_of_n(
    config: Settings, *, data: StageResult, sft: StageResult, reward_model: StageResult, judge: StageResult, run: StageRun
) -> Metrics:
    """The reward model picks, the judge and the truth say what that was worth; writes best_of_n.json, scores a prompt each."""
    held = dataset(data, run.root)
    vocabulary = Vocabulary.load(sft.path / "model")
    prompts, _ = held_out(held.prompts("test"), vocabulary, config)
    onlooker = onlooker_on(
        prompts, config, held, vocabulary, sft=sft.path / "model", reward_model=reward_model.path / "model", judge=judge.path / "model"
    )
    curve = best_of_n_curve(onlooker, ANSWERS, NS, config.seed)
    (run.out / CURVE).write_text(json.dumps([asdict(best) for best in curve]) + "\n", encoding="utf-8")
    one, best = curve[0], curve[-1]
    metrics = {
        "prompts": len(prompts),
        "n": best.n,
        "kl": best.kl,
        "own": statistics.fmean(best.own),
        "judge": statistics.fmean(best.judge),
        "judge_sft": statistics.fmean(one.judge),
    }
    return metrics | ({"gold": statistics.fmean(best.gold)} if best.gold else {})


def read_curve(folder: Path) -> list[BestOfN]:
    return [BestOfN(**row) for row in json.loads((folder / CURVE).read_text(encoding="utf-8"))]
