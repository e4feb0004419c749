"""Made-up evidence: answers with scores and rounds, honest or hacked."""

import numpy as np
import pytest

from tasks.data.records import user
from tasks.evaluation.agreement import Agreement, HumanPairs, agreement
from tasks.evaluation.answers import Judged, Reply
from tasks.evaluation.findings import Evidence
from tasks.evaluation.judges.judge import verdict
from tasks.evaluation.overoptimisation import Round, Rounds, Scores
from tasks.evaluation.rows import verdict_of_gold
from tasks.training.intervals import Bootstrap

BOOTSTRAP = Bootstrap(resamples=400)


@pytest.fixture
def make_rounds():
    """make_rounds(judge_ends_at, chosen) -> seven rounds whose own reward climbs to 2 sd and whose judge goes elsewhere."""

    def make(judge_ends_at=1.5, chosen=60, prompts=120, seed=0):
        rng = np.random.default_rng(seed)
        start = [rng.normal(size=prompts) for _ in range(3)]
        rounds = []
        for number in range(0, 70, 10):
            way = number / 60
            rise = [2.0 * way, judge_ends_at * way, judge_ends_at * way]
            own, judge, gold = (start[i] + rise[i] + 0.5 * rng.normal(size=prompts) * (number > 0) for i in range(3))
            rounds.append(Round(number, 6.0 * way**2, Scores(own, judge, gold)))
        return Rounds(chosen, rounds)

    return make


@pytest.fixture
def make_rows():
    """make_rows(gain, ...) -> judged prompts on which the policy is better than SFT by `gain` standard deviations."""

    def make(gain=0.8, prompts=120, seed=0, truth=True, champion=False, tags=("price", "policy", "refuse")):
        rng = np.random.default_rng(seed)

        def reply(name, place, lift):
            quality = rng.normal() + lift
            return Reply(
                text=f"{name} says: the lamp number {place} costs {rng.integers(5, 60)} euros. Happy to help!",
                length=int(rng.integers(6, 16)),
                stopped=bool(rng.random() < 0.97),
                own=quality + 0.4 * rng.normal(),
                judge=quality + 0.5 * rng.normal(),
                gold=round(quality * 2) / 2 if truth else None,
                right=bool(quality > 0) if truth else None,
            )

        rows = []
        for place in range(prompts):
            policy, sft = reply("Policy", place, gain), reply("SFT", place, 0.0)
            baseline = reply("Champion", place, 0.5 * gain) if champion else None
            rival = baseline or sft
            rows.append(
                Judged(
                    prompt=[user(f"How much is the lamp number {place}?")],
                    group_id=f"group {place}",
                    tags=[tags[place % len(tags)]],
                    policy=policy,
                    sft=sft,
                    baseline=baseline,
                    judge=verdict(policy, rival, policy.judge, rival.judge),
                    judge_over_sft=verdict(policy, sft, policy.judge, sft.judge),
                    gold=verdict_of_gold(policy, rival),
                    gold_over_sft=verdict_of_gold(policy, sft),
                )
            )
        return rows

    return make


@pytest.fixture
def make_scorer():
    """make_scorer(too_sure) -> what a scorer reaches on 600 pairs of 100 prompts whose margins are that many times too large."""

    def make(too_sure=1.0, seed=3) -> Agreement:
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=1200) * 1.2
        first, second = np.arange(600), np.arange(600, 1200)
        swapped = rng.random(600) > 1 / (1 + np.exp(-(scores[first] - scores[second])))
        chosen, rejected = np.where(swapped, second, first), np.where(swapped, first, second)
        pairs = HumanPairs(chosen.tolist(), rejected.tolist(), [9] * 600, [8, 10] * 300, [f"group {i % 100}" for i in range(600)])
        return agreement(scores * too_sure, pairs, BOOTSTRAP)

    return make


@pytest.fixture
def make_evidence(make_rows, make_rounds, make_scorer):
    def make(rows=None, rounds=None, baseline="SFT model", version=None):
        return Evidence(
            rows=rows or make_rows(),
            rounds=rounds or make_rounds(),
            too_long=0,
            kl=5.4,
            judge=make_scorer(),
            reward_model=make_scorer(too_sure=2.0, seed=4),
            prefer_longer=0.5,
            pairs=600,
            baseline=baseline,
            baseline_version=version,
        )

    return make
