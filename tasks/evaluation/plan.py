"""Stage plan: said before anything is trained: can so many held-out prompts show the effect that is asked for?"""

from __future__ import annotations

from tasks.data.snapshot import dataset
from tasks.evaluation.answers import Vocabulary
from tasks.evaluation.evaluate import held_out
from tasks.evaluation.planning import detectable_rate, prompts_needed
from tasks.stage import Metrics, Settings, StageResult, StageRun, stage


@stage("plan", reads=("seed", "max_tokens", "max_new_tokens", "evaluation"), package="evaluation")
def plan(config: Settings, *, data: StageResult, base: StageResult, run: StageRun) -> Metrics:
    """How many prompts there will be, how many the effect needs, and the smallest win rate that those at hand can show.

    Ties, which nobody knows yet, only make it easier. Raises PreflineError where no prompt can be evaluated on.
    """
    asked = config.evaluation
    prompts, _ = held_out(dataset(data, run.root).prompts("test"), Vocabulary.load(base.path / "model"), config)
    return {
        "prompts": len(prompts),
        "needed": prompts_needed(asked.effect, confidence=asked.confidence),
        "effect": asked.effect,
        "detectable": detectable_rate(len(prompts), confidence=asked.confidence),
    }
