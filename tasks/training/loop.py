"""The loop that serves SFT and reward models: order, batches, accumulation, schedule, checkpoints.

A step's gradient is that of one weighted mean over the step's rows, however they are cut into batches that fit in
memory. The order of the data is a function of the seed and the epoch, so that a checkpoint needs no random state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from tasks.config import FitConfig
from tasks.errors import PreflineError
from tasks.training.checkpoint import read_checkpoint, write_checkpoint


class Row(Protocol):
    """What a batch is made of: one text or several. width: tokens of its longest text. tokens: width times its texts.

    weight: its share of the loss, in the loss's own unit.
    """

    @property
    def width(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def weight(self) -> float: ...


R = TypeVar("R", bound=Row)
Loss = Callable[[nn.Module, list[R]], Tensor]
"""Sum of the rows' losses, each times its weight: fit divides by the weight of the whole step."""
Report = Callable[..., None]
"""report(done, total, **metrics), called after every step."""


def seed_of(seed: int, step: int) -> int:
    """A seed for one step (an epoch, a round, a batch) of a seeded whole; any seed and step are within torch's range."""
    return (seed * 1_000_003 + step) % 2**63


def order_of_epoch(count: int, seed: int, epoch: int) -> list[int]:
    """The rows' order in an epoch: a permutation that depends on nothing but its arguments."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


def microbatches(rows: Sequence[R], tokens_at_once: int) -> Iterator[list[R]]:
    """Cut a step's rows into batches of similar length whose padded size is at most tokens_at_once (or one row)."""
    batch: list[R] = []
    texts = 0
    for row in sorted(rows, key=lambda row: -row.width):
        more = row.tokens // row.width
        if batch and (texts + more) * batch[0].width > tokens_at_once:
            yield batch
            batch, texts = [], 0
        batch.append(row)
        texts += more
    if batch:
        yield batch


def learning_rate(step: int, total: int, config: FitConfig) -> float:
    """Linear warm-up over the first share of the steps, then a cosine to 0. step counts from 0."""
    warmup = config.warmup * total
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def fit(model: nn.Module, rows: Sequence[R], loss: Loss[R], config: FitConfig, seed: int, checkpoints: Path, report: Report) -> None:
    """Train model on rows, in place; goes on from the newest checkpoint and ends in the weights of an unbroken run.

    Raises PreflineError where there are no rows or the loss is no longer finite.
    """
    if not rows:
        raise PreflineError("There is nothing to train on: 0 rows.", "Look at the data: prefline data show.")
    batch = min(config.batch, len(rows))
    per_epoch = len(rows) // batch  # an incomplete last batch is left for the next epoch's order
    total = max(1, round(config.epochs * per_epoch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    first = 0
    saved = read_checkpoint(checkpoints)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    last_saved = time.monotonic()
    model.train()
    order: list[int] = []
    for step in range(first, total):
        epoch, place = divmod(step, per_epoch)
        if not order or place == 0:
            order = order_of_epoch(len(rows), seed, epoch)
        window = [rows[i] for i in order[place * batch : (place + 1) * batch]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, config)
        mean, norm = accumulate(model, window, loss, config)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise PreflineError(
                f"Step {step + 1} of {total}: loss {mean}, gradient norm {norm}: not finite.",
                "Lower learning_rate or clip_gradient. The last good checkpoint is kept.",
            )
        optimizer.step()
        report(step + 1, total, loss=mean, gradient_norm=norm, learning_rate=optimizer.param_groups[0]["lr"])
        if time.monotonic() - last_saved > config.checkpoint_seconds and step + 1 < total:
            write_checkpoint(checkpoints, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
            last_saved = time.monotonic()


def accumulate(model: nn.Module, window: Sequence[R], loss: Loss[R], config: FitConfig) -> tuple[float, float]:
    """Gradients of the window's weighted mean loss, clipped; returns that mean and the norm before clipping."""
    weight = sum(row.weight for row in window)
    model.zero_grad(set_to_none=True)
    mean = 0.0
    for part in microbatches(window, config.tokens_at_once):
        share = loss(model, part) / weight
        share.backward()
        mean += share.item()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_gradient)
    return mean, float(norm)
