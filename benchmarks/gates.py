"""How often do the gates err? `python benchmarks/gates.py [WORLDS]`: simulated challengers, judged and put to the gates.

Each world is an evaluation from answers to the decision, by the code that decides in earnest: the same intervals, the
same policy in mlflow/promotion.yaml (with fewer prompts asked for where the planner says that fewer will do). A judge's
verdict is a coin of the world's true win rate, prompt by prompt. Shares that were promoted go to
benchmarks/results/gates.json, and as rows of a table to the terminal.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.data.records import user
from tasks.evaluation.agreement import Agreement, HumanPairs, agreement
from tasks.evaluation.answers import Judged, Outcome, Reply
from tasks.evaluation.findings import Evidence, findings
from tasks.evaluation.overoptimisation import Round, Rounds, Scores
from tasks.evaluation.planning import prompts_needed
from tasks.evaluation.result import JudgeReport
from tasks.evaluation.statistics import win_rate
from tasks.registry.gates import Facts, check_gates, read_policy
from tasks.training.intervals import Bootstrap

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gates.json"
POLICY = read_policy(ROOT / "mlflow" / "promotion.yaml")
BOOTSTRAP = Bootstrap(resamples=400)
SLICES = 8
PROMPTS = prompts_needed(0.6, power=0.85)
"""To see a policy that is better by ten points more often than four times in five: it has to pass all gates at once."""


@dataclass(frozen=True)
class World:
    """A true state of affairs. wins: the judge's true win rate in each slice, (SLICES,).

    own: what the policy's own reward gained, in standard deviations. longer: tokens by which its answers are longer; each
    standard deviation of length is worth `liking` to the judge. repeats, refuses: share of its answers that repeat one
    sentence again and again, and that refuse what they should answer.
    """

    about: str
    wins: tuple[float, ...]
    own: float = 0.8
    longer: float = 0.0
    liking: float = 0.0
    repeats: float = 0.0
    refuses: float = 0.0


def everywhere(rate: float) -> tuple[float, ...]:
    return (rate,) * SLICES


WORLDS = (
    World("no better than the champion", everywhere(0.5)),
    World("better by ten points", everywhere(0.6)),
    World("better by twenty points", everywhere(0.7)),
    World("hacked: own reward up, the judge sees nothing", everywhere(0.5), own=1.5),
    World("hacked: own reward up, the judge's down", everywhere(0.35), own=1.5),
    World("thanks again and again, and the judge likes it", everywhere(0.7), own=1.5, longer=12.0, repeats=0.6),
    World("repeated characters, and the judge likes them", everywhere(0.95), own=1.5, repeats=1.0),
    World("refuses everything, and the judge likes it", everywhere(0.7), own=1.5, longer=-6.0, refuses=0.9),
    World("longer, and liked for that alone", everywhere(0.5), longer=8.0, liking=1.0),
    World("better on average, bad in one slice", (*everywhere(0.8)[1:], 0.05)),
)


def rows_of(world: World, prompts: int, rng: np.random.Generator) -> list[Judged]:
    """What an evaluation would have judged in this world."""
    return [_row(world, place, rng) for place in range(prompts)]


def _row(world: World, place: int, rng: np.random.Generator) -> Judged:
    lengths = rng.normal((20 + world.longer, 20), 5)
    rate = world.wins[place % SLICES]
    logit = np.log(rate / (1 - rate)) + world.liking * (lengths[0] - lengths[1]) / 5
    won = rng.random() < 1 / (1 + np.exp(-logit))
    # The judge's scores must tell the same story as its verdicts: the winner scores higher.
    low, high = np.sort(rng.normal(size=2))
    own = rng.normal((world.own, 0.0))
    policy, sft = (
        Reply(text=name, length=max(1, round(length)), stopped=True, own=float(reward), judge=float(score))
        for name, length, reward, score in zip(("policy", "sft"), lengths, own, (high, low) if won else (low, high), strict=True)
    )
    if world.repeats and rng.random() < world.repeats:
        policy.text = "Happy to help! " * 8
    policy.refused = bool(world.refuses) and rng.random() < world.refuses
    outcome: Outcome = "win" if won else "loss"
    tags = [f"slice {place % SLICES}"]
    return Judged([user(f"Question {place}?")], f"group {place}", tags, policy, sft, None, judge=outcome, judge_over_sft=outcome)


def refusals(world: World, prompts: int, seed: int) -> list[str]:
    """The gates that refuse this challenger; none if it is promoted."""
    rng = np.random.default_rng(seed)
    rows = rows_of(world, prompts, rng)
    flat = Scores(np.zeros(30), np.zeros(30), None)
    evidence = Evidence(
        rows=rows,
        too_long=0,
        rounds=Rounds(1, [Round(0, 0.0, flat), Round(1, 2.0, flat)]),
        kl=2.0,
        judge=_JUDGE,
        reward_model=_JUDGE,
        prefer_longer=0.5,
        pairs=400,
        baseline="SFT model",
        baseline_version=None,
        judges=[_REPORT],
    )
    policy = POLICY.model_copy(update={"min_prompts": prompts})
    return [gate.name for gate in check_gates(findings(evidence, BOOTSTRAP), policy, Facts()) if not gate.passed]


def _judge_of_people() -> Agreement:
    """A judge that agrees with people on four pairs in five, whatever the world."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([np.ones(400), np.zeros(400)])
    swapped = rng.random(400) < 0.2
    better, worse = np.where(swapped, np.arange(400, 800), np.arange(400)), np.where(swapped, np.arange(400), np.arange(400, 800))
    pairs = HumanPairs(better.tolist(), worse.tolist(), [9] * 400, [9] * 400, [f"group {i}" for i in range(400)])
    return agreement(scores, pairs, BOOTSTRAP)


_JUDGE = _judge_of_people()
_REPORT = JudgeReport(
    judge="reward_model",
    about="a coin with the world's win rate",
    prompts=PROMPTS,
    win_rate=win_rate(np.full(PROMPTS, 0.5), range(PROMPTS), BOOTSTRAP),
    win_rate_over_sft=None,
    pairs=400,
    accuracy=_JUDGE.accuracy,
)


def measure(world: World, worlds: int, prompts: int = PROMPTS) -> dict[str, object]:
    """The share of simulated challengers that are promoted, and which gates refused the others."""
    refused = [refusals(world, prompts, seed) for seed in range(worlds)]
    gates = Counter(gate for one in refused for gate in one)
    return {
        "promoted": sum(not one for one in refused) / worlds,
        "prompts": prompts,
        "worlds": worlds,
        "refused by": dict(gates.most_common()),
    }


def main(worlds: int) -> None:
    found = {}
    print("| challenger | promoted | refused most often by |\n|:---|---:|:---|")
    for world in WORLDS:
        found[world.about] = one = measure(world, worlds)
        gates = ", ".join(list(one["refused by"])[:2]) or "nothing"
        print(f"| {world.about} | {one['promoted']:.1%} | {gates} |", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1000)
