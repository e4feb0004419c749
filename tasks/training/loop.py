"""The loop that serves SFT, reward models and DPO: order, batches, accumulation, schedule, looks, checkpoints.

A step's gradient is that of one weighted mean over the step's rows, however they are cut into batches that fit in
memory, and over however many processes. The order of the data is a function of the seed and the epoch, so that a
checkpoint needs no random state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tasks.errors import PreflineError
from tasks.training.batches import microbatches
from tasks.training.checkpoint import read_checkpoint, write_checkpoint
from tasks.training.end_to_end import cut_for
from tasks.training.processes import Processes
from tasks.training_config import ComputeConfig, FitConfig


class Row(Protocol):
    """What a batch is made of. width: its tokens. weight: its share of the loss, in the loss's own unit."""

    @property
    def width(self) -> int: ...

    @property
    def weight(self) -> float: ...


R = TypeVar("R", bound=Row)
Loss = Callable[[nn.Module, list[R]], Tensor]
"""Sum of the rows' losses, each times its weight: fit divides by the weight of the whole step."""
Cut = Callable[[Sequence[R], int], list[list[R]]]
"""cut(rows, tokens_at_once) -> batches that fit in memory."""
Report = Callable[..., None]
"""report(done, total, **metrics), called after every step."""
Seen = dict[str, Any]
"""What a look found: figures by name, and whatever else the caller wants back. Kept in checkpoints: plain values only."""


def seed_of(seed: int, step: int) -> int:
    """A seed for one step (an epoch, a round, a batch) of a seeded whole; any seed and step are within torch's range."""
    return (seed * 1_000_003 + step) % 2**63


def order_of_epoch(count: int, seed: int, epoch: int) -> list[int]:
    """The rows' order in an epoch: a permutation that depends on nothing but its arguments."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


def learning_rate(step: int, total: int, config: FitConfig) -> float:
    """Linear warm-up over the first share of the steps, then the schedule, down to 0 but for "constant". step counts from 0."""
    warmup = config.warmup * total
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, total - warmup)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * left[config.schedule]


@dataclass(frozen=True)
class Validation:
    """Looks at held-out rows on the way. measure(model, share): share of the training that is done, from 0 to 1.

    metric: of what measure returns, the one that names the weights to keep and when to stop; "" keeps the last.
    stop(looks): is what was seen so far a reason to end early?
    """

    measure: Callable[[nn.Module, float], Seen]
    metric: str = ""
    higher_is_better: bool = True
    stop: Callable[[Sequence[Seen]], bool] = lambda looks: False


@dataclass
class Fitted:
    """Where training is, and what was seen on the way. best: the weights of the best look, where one was to be named."""

    step: int = 0
    looks: list[Seen] = field(default_factory=list)
    best_look: int = -1
    best: dict[str, Tensor] = field(default_factory=dict)


def fit(
    model: nn.Module,
    rows: Sequence[R],
    loss: Loss[R],
    config: FitConfig,
    *,
    seed: int,
    checkpoints: Path,
    report: Report,
    here: Processes | None = None,
    validation: Validation | None = None,
    cut: Cut[R] | None = None,
) -> Fitted:
    """Train model on rows, in place; goes on from the newest checkpoint and ends in the weights of an unbroken run.

    The model is left as validation found it best, or as the last step made it. Raises PreflineError where there are no
    rows or the loss is no longer finite.
    """
    if not rows:
        raise PreflineError("There is nothing to train on: 0 rows.", "Look at the data: prefline data show.")
    here = here or Processes(ComputeConfig())
    batch = min(config.batch, len(rows))
    per_epoch = len(rows) // batch  # an incomplete last batch is left for the next epoch's order
    total = max(1, round(config.epochs * per_epoch))
    looks = {max(1, round(total * (i + 1) / config.looks)) for i in range(config.looks)} if validation else set()
    cut = cut or cut_for(model)
    here.place(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True)
    state = Fitted()
    saved = read_checkpoint(checkpoints)
    if saved:
        here.restore(model, optimizer, saved)
        state = Fitted(**saved["fitted"])
    last_saved = time.monotonic()
    model.train()
    order: list[int] = []
    while state.step < total and not _seen_enough(state, config, validation):
        epoch, place = divmod(state.step, per_epoch)
        if not order or place == 0:
            order = order_of_epoch(len(rows), seed, epoch)
        window = [rows[i] for i in order[place * batch : (place + 1) * batch]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step, total, config)
        mean, norm = accumulate(model, window, loss, config, here, cut)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise PreflineError(
                f"Step {state.step + 1} of {total}: loss {mean}, gradient norm {norm}: not finite.",
                "Lower learning_rate or clip_gradient. The last good checkpoint is kept.",
            )
        optimizer.step()
        state.step += 1
        figures = {"loss": mean, "gradient_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}
        if validation and state.step in looks:
            figures |= _look(model, state, validation, here, state.step / total)
        report(state.step, total, **figures)
        due = here.agreed(time.monotonic() - last_saved >= config.checkpoint_seconds)
        if due and state.step < total:
            kept = here.state(model, optimizer) | {"fitted": vars(state)}
            if here.main:
                write_checkpoint(checkpoints, kept)
            last_saved = time.monotonic()
    if state.best_look >= 0:
        here.load(model, here.from_main(lambda: state.best))  # with sharding the main process alone has them
    return state


def _look(model: nn.Module, state: Fitted, validation: Validation, here: Processes, share: float) -> dict[str, float]:
    """Measure, remember the weights if they are the best so far, and return the figures to report."""
    plain = here.plain(model)
    plain.eval()
    seen = here.from_main(lambda: validation.measure(plain, share))
    model.train()
    state.looks.append(seen)
    if validation.metric:
        better = max if validation.higher_is_better else min
        values = [look[validation.metric] for look in state.looks]
        if values[-1] == better(values):
            state.best_look, state.best = len(values) - 1, here.weights(model)
    return {name: value for name, value in seen.items() if isinstance(value, float)}


def _seen_enough(state: Fitted, config: FitConfig, validation: Validation | None) -> bool:
    """Did the last looks, as many as config.patience, find nothing better, or does validation say stop? Asked of a resumed run too."""
    if validation is None or not state.looks:
        return False
    if validation.metric and config.patience is not None and len(state.looks) - 1 - state.best_look >= config.patience:
        return True
    return validation.stop(state.looks)


def accumulate(
    model: nn.Module, window: Sequence[R], loss: Loss[R], config: FitConfig, here: Processes, cut: Cut[R] = microbatches
) -> tuple[float, float]:
    """Gradients of the window's weighted mean loss, clipped; returns that mean and the norm before clipping."""
    weight = sum(row.weight for row in window)
    model.zero_grad(set_to_none=True)
    mean = torch.zeros(())
    for part, factor in own_batches(window, config.tokens_at_once, here, cut):
        with here.autocast():
            share = loss(model, part) * (factor / weight)
        (share * here.count if here.sharded else share).backward()  # fully_shard takes the mean over processes
        mean += share.detach().cpu()
    here.sum_gradients(model.parameters())
    return float(here.total(mean)), here.clip(model, config.clip_gradient)


def own_batches(window: Sequence[R], tokens_at_once: int, here: Processes, cut: Cut[R] = microbatches) -> list[tuple[list[R], float]]:
    """This process's batches of a window, each with the factor 1.

    Sharded models must make as many passes in every process, so one that has fewer repeats its last with the factor 0.
    """
    ordered = sorted(window, key=lambda row: -row.width)
    cuts = [cut(ordered[rank :: here.count], tokens_at_once) for rank in range(here.count)]
    own = [(part, 1.0) for part in cuts[here.rank]]
    if here.sharded:
        spare = own[-1][0] if own else ordered[:1]
        own += [(spare, 0.0)] * (max(map(len, cuts)) - len(own))
    return own
