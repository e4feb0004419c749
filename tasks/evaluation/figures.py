"""The main figures of an evaluation as the stage's metrics: for tables of runs and curves over them."""

from __future__ import annotations

from tasks.evaluation.result import Evaluation
from tasks.stage import Metrics


def metrics_of(found: Evaluation) -> Metrics:
    """The main figures, for the table and for curves over runs."""
    metrics = {
        "prompts": found.prompts,
        "win_rate": found.win_rate.rate,
        "win_rate_low": found.win_rate.low,
        "win_rate_high": found.win_rate.high,
        "win_rate_over_sft": found.win_rate_over_sft.rate,
        "kl": found.kl,
        "own_policy": found.policy.own,
        "own_sft": found.sft.own,
        "judge_policy": found.policy.judge,
        "judge_sft": found.sft.judge,
        "length_policy": found.policy.length,
        "length_sft": found.sft.length,
        "stopped_policy": found.policy.stopped,
        "distinct_policy": found.policy.distinct,
        "repetition_policy": found.policy.repetition,
        "refused_policy": found.policy.refused,
        "judge_accuracy": found.judge_accuracy[0],
        "reward_model_accuracy": found.reward_model_accuracy[0],
        "own_gain": found.over_optimisation.registered_own_gain[0],
        "judge_gain": found.over_optimisation.registered_judge_gain[0],
        "hacked": found.over_optimisation.hacked,
    }
    gold, gold_over_sft = found.win_rate_gold, found.win_rate_over_sft_gold
    where_known = {
        "distinct_2_policy": found.policy.distinct_2,
        "self_bleu_policy": found.policy.self_bleu,
        "refused_rightly_policy": found.policy.refused_rightly,
        "refused_wrongly_policy": found.policy.refused_wrongly,
        "perplexity_policy": found.policy.perplexity,
        "perplexity_sft": found.sft.perplexity,
        "win_rate_gold": gold.rate if gold else None,
        "win_rate_gold_low": gold.low if gold else None,
        "win_rate_over_sft_gold": gold_over_sft.rate if gold_over_sft else None,
        "gold_policy": found.policy.gold,
        "gold_sft": found.sft.gold,
        "right_policy": found.policy.right,
        "right_sft": found.sft.right,
        "judge_agrees_with_gold": found.judge_agrees_with_gold,
    }
    return {name: float(value) for name, value in (metrics | where_known).items() if value is not None}
