"""When optimising ends early: because something broke, or because there is nothing more to gain.

What broke raises, and the last good checkpoint stays. The rest ends the training as its last round would.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tasks.errors import PreflineError
from tasks.training.onlooker import Look, Stats
from tasks.training.rollouts import Episode
from tasks.training_config import PolicyConfig

RUNAWAY = 20.0
"""Nats a token, in the mean of a round: every token is one to which the reference gives 2 chances in a thousand million.

A policy that hacks its reward without any penalty gets to a few nats a token.
"""
ROUNDS_TO_BE_SURE = 3
"""Rounds in a row that must look alike before they are more than bad luck."""
KEPT = "The last good checkpoint is kept."


def refuse_broken(episodes: Sequence[Episode], number: int) -> None:
    """Raises PreflineError where the answers of a round, counted from 1, can't be learnt from."""
    unscored = [episode for episode in episodes if not math.isfinite(episode.score)]
    if unscored:
        raise PreflineError(
            f"Round {number}: the reward model's score is {unscored[0].score} for {len(unscored)} of {len(episodes)} answers.",
            f"Look at the reward model: train it again with a lower reward_model.learning_rate. {KEPT}",
        )
    tokens = sum(len(episode.logprobs) for episode in episodes)
    kl = sum(sum(episode.logprobs) - sum(episode.reference) for episode in episodes) / tokens
    if not kl <= RUNAWAY:
        raise PreflineError(
            f"Round {number}: the policy is {kl:.3g} nats a token from its reference: more than {RUNAWAY:g} is no language.",
            f"Lower policy.learning_rate, raise policy.kl.weight, or set policy.stop_kl. {KEPT}",
        )


def why_enough(done: int, kl: float, judged: Sequence[float], config: PolicyConfig) -> str:
    """A reason that policy.stop_kl or stop_judge gives to end, or "". kl: now, in nats a sequence. judged: the mean of each look."""
    if config.stop_kl is not None and kl > config.stop_kl:
        return f"Round {done}: KL {kl:.3g} nats a sequence, and stop_kl is {config.stop_kl:g}."
    since = len(judged) - 1 - judged.index(max(judged)) if judged else 0
    if config.stop_judge is not None and since >= config.stop_judge:
        return f"Round {done}: the judge has seen nothing better for {since} looks."
    return ""


def why_ended(done: int, history: Sequence[Stats], looks: Sequence[Look], config: PolicyConfig) -> str:
    """A reason to end after so many rounds, or "". It depends on what a checkpoint holds alone: a resumed run ends too.

    The judge's looks count from round 1: round 0 is nothing that could be kept.
    """
    if not history:
        return ""
    judged = [statistics.fmean(look.judge) for look in looks if look.round > 0]
    reason = why_enough(done, history[-1]["kl"], judged, config)
    if reason:
        return reason
    recent = history[-ROUNDS_TO_BE_SURE:]
    if len(recent) < ROUNDS_TO_BE_SURE:
        return ""
    if all(round(stats["distinct"] * config.answers) == 1 for stats in recent):
        return f"Round {done}: for {ROUNDS_TO_BE_SURE} rounds all answers have been one and the same: nothing is left to compare."
    if looks[0].stopped >= 0.5 and all(stats["no_stop"] == 1 for stats in recent):
        return f"Round {done}: for {ROUNDS_TO_BE_SURE} rounds no answer has ended by itself, as the SFT model's do."
    return ""
