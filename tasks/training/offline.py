"""What the methods that learn from a fixed set share, DPO and rejection sampling: what is worked out once, and the onlooker.

How a policy is trained on rows is the loop's; which rows, and by which loss, is the method's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tasks.training.adapters import merged
from tasks.training.checkpoint import read_checkpoint, write_checkpoint
from tasks.training.loop import Loss, R, Seen, Validation, fit
from tasks.training.onlooker import Look, Optimised, Stats, best_of
from tasks.training.processes import Processes
from tasks.training.stops import why_enough
from tasks.training.workshop import Workshop
from tasks.training_config import FitConfig


def once(folder: Path, here: Processes, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What make returns in all processes, or returned when a run that was killed had got so far: tensors and plain values.

    folder: one of the stage's checkpoints, which are those of one key: data, models and settings are the same.
    """
    found = here.from_main(lambda: read_checkpoint(folder))
    if found is None:
        found = make()
        if here.main:
            write_checkpoint(folder, found)
    return found


def first_look(shop: Workshop, policy: PreTrainedModel) -> Look:
    """Round 0: the policy before it learns, which is the SFT model."""
    kept = once(shop.checkpoints / "round-0", shop.here, lambda: shop.here.from_main(lambda: asdict(shop.onlooker.look(0, policy))))
    return Look(**kept)


def fit_policy(
    shop: Workshop,
    policy: PreTrainedModel,
    rows: Sequence[R],
    loss: Loss[R],
    config: FitConfig,
    figures: Callable[[PreTrainedModel], Stats] = lambda policy: {},
) -> Optimised:
    """Train the policy on rows, looked at config.looks times and before the first step; kept is the look that policy.choose names.

    figures: what else is measured at a look, by name. Rounds are looks, and history has a row for each after the first.
    """
    before = first_look(shop, policy)

    def measure(model: nn.Module, share: float) -> Seen:
        assert isinstance(model, PreTrainedModel)
        look = asdict(shop.onlooker.look(0, model))  # its number is its place among the looks, which is known when all are done
        seen = {name: look[name] for name in ("kl", "length", "stopped")} | {name: fmean(look[name]) for name in ("own", "judge")}
        return {"share": share} | seen | figures(model) | {"look": look}

    def why(seen: Sequence[Seen]) -> str:
        return why_enough(len(seen), seen[-1]["kl"], [one["judge"] for one in seen], shop.config)

    choose = shop.config.choose
    watched = Validation(measure, metric="" if choose == "last" else choose, stop=lambda seen: bool(why(seen)))
    fitted = fit(
        policy, rows, loss, config, seed=shop.seed, checkpoints=shop.checkpoints, report=shop.report, here=shop.here, validation=watched
    )
    learnt = shop.here.plain(policy)
    assert isinstance(learnt, PreTrainedModel)
    seen = fitted.looks
    looks = [before, *(Look(**one["look"] | {"round": number}) for number, one in enumerate(seen, 1))]
    history = [{name: value for name, value in one.items() if name != "look"} for one in seen]
    early = f"Round {len(seen)}: nothing better for {config.patience} looks." if seen[-1]["share"] < 1 else ""
    return Optimised(merged(learnt), len(seen), best_of(looks, choose), looks, history, ended=early and (why(seen) or early))
