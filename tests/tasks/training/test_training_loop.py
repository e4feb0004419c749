"""The loop: order, batches, accumulation, schedule, and resuming bit for bit."""

import copy
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import PreflineError
from tasks.training.checkpoint import read_checkpoint
from tasks.training.loop import Validation, accumulate, fit, learning_rate, order_of_epoch
from tasks.training.models import RewardModel
from tasks.training.processes import Processes
from tasks.training.reward_model import Group, group_loss
from tasks.training.sft import SFTRow, sft_loss
from tasks.training_config import ComputeConfig, FitConfig

ROOT = Path(__file__).parents[3]
EOS = 1
ALONE = Processes(ComputeConfig())
SFT_ROWS = [
    SFTRow([3, *range(10, 10 + n), 4], [*range(50, 50 + m), EOS])
    for n, m in [(1, 1), (9, 2), (2, 12), (5, 5), (3, 1), (7, 7), (1, 3), (4, 9)]
]
GROUPS = [
    Group([3, 40 + n, 4], [[60, EOS], [*range(70, 70 + n), EOS], [99, 98, EOS]], pairs)
    for n, pairs in enumerate([[(0, 1)], [(0, 1), (0, 2), (1, 2)], [(2, 0)], [(1, 0), (1, 2)], [(0, 1), (0, 2), (1, 2)]], start=1)
]


def silent(*_, **__):
    pass


# Order ---------------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 200), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_the_order_of_an_epoch_is_a_permutation(count, seed, epoch):
    assert sorted(order_of_epoch(count, seed, epoch)) == list(range(count))


def test_the_order_differs_by_epoch_and_by_seed_and_by_nothing_else():
    orders = {(seed, epoch): tuple(order_of_epoch(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(set(orders.values())) == 25
    torch.manual_seed(123)
    assert tuple(order_of_epoch(50, 3, 2)) == orders[3, 2]


@pytest.mark.parametrize("seed", [20_261_125, 2**31 - 1, (2**31 - 1) * 1_000_003 + 60])
def test_a_date_will_do_as_a_seed(seed):
    assert sorted(order_of_epoch(10, seed, 3)) == list(range(10))


# Accumulation --------------------------------------------------------------------------------------------------------


def gradient_of(model, rows, loss, tokens_at_once, clip=1e9):
    mean, norm = accumulate(model, rows, loss, FitConfig(tokens_at_once=tokens_at_once, clip_gradient=clip), ALONE)
    return mean, norm, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", ["sft", "reward"])
@pytest.mark.parametrize("tokens_at_once", [1, 40])
def test_eight_times_one_row_has_the_gradient_of_eight_rows_at_once(llama, policy_folder, kind, tokens_at_once):
    if kind == "sft":
        model, rows, loss = llama, SFT_ROWS, sft_loss
    else:
        model, rows, loss = RewardModel.from_policy(policy_folder, seed=0), GROUPS, group_loss
    model = model.double()  # differences are then of method and not of rounding
    whole_mean, whole_norm, whole = gradient_of(model, rows, loss, 10**6)
    mean, norm, parts = gradient_of(model, rows, loss, tokens_at_once)
    assert (mean, norm) == pytest.approx((whole_mean, whole_norm), rel=1e-6)
    assert max((a - b).abs().max().item() for a, b in zip(whole, parts, strict=True)) < 1e-6


def test_a_steps_loss_is_the_mean_over_all_its_tokens_and_not_over_rows(llama):
    mean, _, gradient = gradient_of(llama, SFT_ROWS, sft_loss, tokens_at_once=40)
    tokens = sum(len(row.answer) for row in SFT_ROWS)
    losses = [sft_loss(llama, [row]) for row in SFT_ROWS]
    expected = sum(losses) / tokens
    assert mean == pytest.approx(expected.item(), rel=1e-5)
    by_rows = sum(loss.item() / len(row.answer) for loss, row in zip(losses, SFT_ROWS, strict=True)) / len(SFT_ROWS)
    assert abs(mean - by_rows) > 0.01  # the lengths differ enough to tell
    llama.zero_grad()
    expected.backward()
    for found, parameter in zip(gradient, llama.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_by_its_norm_and_the_norm_before_is_told(llama):
    _, norm, whole = gradient_of(llama, SFT_ROWS, sft_loss, 10**6)
    _, told, clipped = gradient_of(llama, SFT_ROWS, sft_loss, 10**6, clip=norm / 4)
    assert told == pytest.approx(norm)
    assert math.sqrt(sum((g**2).sum().item() for g in clipped)) == pytest.approx(norm / 4, rel=1e-4)
    torch.testing.assert_close(clipped[0] * 4, whole[0], rtol=1e-4, atol=1e-6)


# Schedule ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "share"),
    [  # 20 steps, warm-up over 2: thirds up to the peak at step 2, then half a cosine over 18
        (0, 1 / 3),
        (1, 2 / 3),
        (2, 1.0),
        (5, 0.5 * (1 + math.cos(math.pi / 6))),  # 0.933013
        (11, 0.5),
        (19, 0.5 * (1 + math.cos(17 * math.pi / 18))),  # 0.007596
    ],
)
def test_learning_rate_by_hand(step, share):
    assert learning_rate(step, 20, FitConfig(learning_rate=0.01, warmup=0.1)) == pytest.approx(0.01 * share)


@pytest.mark.parametrize(("schedule", "shares"), [("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0] * 4)])
def test_other_schedules_by_hand(schedule, shares):
    config = FitConfig(learning_rate=0.01, warmup=0.0, schedule=schedule)
    assert [learning_rate(step, 4, config) for step in range(4)] == pytest.approx([0.01 * share for share in shares])


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 7])
def test_the_learning_rate_is_never_zero_nor_above_its_peak(warmup, total):
    rates = [learning_rate(step, total, FitConfig(learning_rate=0.01, warmup=warmup)) for step in range(total)]
    assert all(0 < rate <= 0.01 for rate in rates)


# Fitting -------------------------------------------------------------------------------------------------------------


def run(model, folder, rows=SFT_ROWS, loss=sft_loss, report=silent, **config):
    config = FitConfig(**({"epochs": 3, "batch": 2, "learning_rate": 1e-2, "checkpoint_seconds": 1e-9} | config))
    fit(model, rows, loss, config, seed=5, checkpoints=folder, report=report)
    return model


def test_every_row_is_used_once_an_epoch_in_the_order_of_the_epoch(llama, tmp_path):
    seen = []

    def loss(model, rows):
        seen.extend(SFT_ROWS.index(row) for row in rows)
        return sft_loss(model, rows)

    run(llama, tmp_path, loss=loss, batch=1)
    assert seen == [i for epoch in range(3) for i in order_of_epoch(8, 5, epoch)]


def test_steps_follow_the_schedule_that_is_reported(llama, tmp_path):
    told = []
    run(llama, tmp_path, report=lambda done, total, **metrics: told.append((done, total, metrics)), warmup=0.25)
    config = FitConfig(learning_rate=1e-2, warmup=0.25)
    assert [(done, total) for done, total, _ in told] == [(step + 1, 12) for step in range(12)]
    assert [metrics["learning_rate"] for *_, metrics in told] == [learning_rate(step, 12, config) for step in range(12)]
    assert told[-1][2]["loss"] < told[0][2]["loss"] - 1


@pytest.mark.parametrize(("epochs", "batch", "steps"), [(1, 3, 2), (0.5, 2, 2), (2.5, 8, 2), (0.001, 8, 1), (1, 100, 1)])
def test_the_number_of_steps_by_hand(llama, tmp_path, epochs, batch, steps):
    done = []
    run(llama, tmp_path, report=lambda step, total, **_: done.append((step, total)), epochs=epochs, batch=batch)
    assert done[-1] == (steps, steps)


def test_nothing_to_train_on_is_an_error_that_says_so(llama, tmp_path):
    with pytest.raises(PreflineError, match="0 rows"):
        run(llama, tmp_path, rows=[])


@pytest.mark.parametrize("spoils", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(llama, tmp_path, spoils):
    calls = []

    def loss(model, rows):
        calls.append(1)
        return sft_loss(model, rows) * (spoils if len(calls) == 4 else 1.0)

    with pytest.raises(PreflineError, match=r"Step 4 of 12.*not finite") as caught:
        run(llama, tmp_path, loss=loss)
    assert "learning_rate" in caught.value.advice
    assert all(parameter.isfinite().all() for parameter in llama.parameters())
    assert read_checkpoint(tmp_path)["fitted"]["step"] == 3


def test_a_finite_loss_with_an_endless_gradient_stops_the_run_too(llama, tmp_path):
    def loss(model, rows):
        return sft_loss(model, rows) + (model.lm_head.weight[0, 0] * 0.0).abs().sqrt()

    with pytest.raises(PreflineError, match=r"Step 1 of 12: loss \d.*gradient norm nan"):
        run(llama, tmp_path, loss=loss)
    assert all(parameter.isfinite().all() for parameter in llama.parameters())


# Looks ---------------------------------------------------------------------------------------------------------------


def looked(model, folder, seen, metric="", higher_is_better=True, stop=lambda looks: False, report=silent, **config):
    """Fit with looks that find what `seen` says, one after the other; returns what fit found, and where it looked."""
    at = []

    def measure(whole, share):
        assert not whole.training
        at.append((share, copy.deepcopy(whole.state_dict())))
        return {"quality": seen[round(share * config["looks"]) - 1], "note": ["any", "thing"]}

    validation = Validation(measure, metric, higher_is_better, stop)
    settings = FitConfig(**({"epochs": 3, "batch": 2, "learning_rate": 1e-2, "checkpoint_seconds": 0} | config))
    return fit(model, SFT_ROWS, sft_loss, settings, seed=5, checkpoints=folder, report=report, validation=validation), at


def same(model, weights):
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_looks_are_spread_evenly_and_told_with_their_step(llama, tmp_path):
    told = {}
    found, at = looked(
        llama, tmp_path, [0.1, 0.3, 0.2, 0.4], report=lambda done, total, **m: told.update({done: m.get("quality")}), looks=4
    )
    assert [share for share, _ in at] == [0.25, 0.5, 0.75, 1.0]
    assert {step: value for step, value in told.items() if value is not None} == {3: 0.1, 6: 0.3, 9: 0.2, 12: 0.4}
    assert found.looks == [{"quality": value, "note": ["any", "thing"]} for value in (0.1, 0.3, 0.2, 0.4)]
    assert same(llama, at[-1][1])


@pytest.mark.parametrize(("higher", "best"), [(True, 1), (False, 2)])
def test_the_weights_of_the_best_look_are_kept(llama, tmp_path, higher, best):
    found, at = looked(llama, tmp_path, [0.2, 0.5, 0.1, 0.3], "quality", higher, looks=4)
    assert found.best_look == best
    assert same(llama, at[best][1])
    assert not same(llama, at[-1][1])


def test_of_equal_looks_the_later_is_kept(llama, tmp_path):
    found, _ = looked(llama, tmp_path, [0.5, 0.5, 0.1, 0.5], "quality", looks=4)
    assert found.best_look == 3


def test_patience_ends_training_after_so_many_looks_without_a_better_one(llama, tmp_path):
    found, at = looked(llama, tmp_path, [0.2, 0.5, 0.4, 0.3, 0.9, 1.0], "quality", looks=6, patience=2)
    assert (found.step, len(at), found.best_look) == (8, 4, 1)
    assert same(llama, at[1][1])
    again, more = looked(llama, tmp_path, [0.0] * 6, "quality", looks=6, patience=2)  # resumed, it doesn't go on either
    assert (again.step, more) == (8, [])


def test_a_reason_to_stop_ends_training(llama, tmp_path):
    found, _ = looked(llama, tmp_path, [0.2, 7.0, 0.4], stop=lambda looks: looks[-1]["quality"] > 5, looks=3)
    assert found.step == 8


@pytest.mark.parametrize("kill", [1, 5, 8, 11])
def test_a_resumed_run_remembers_its_looks_and_its_best(llama, tmp_path, kill):
    start = copy.deepcopy(llama)
    unbroken, _ = looked(llama, tmp_path / "unbroken", [0.2, 0.9, 0.1], "quality", looks=3)
    resumed = copy.deepcopy(start)
    with pytest.raises(Killed):
        looked(copy.deepcopy(start), tmp_path / "broken", [0.2, 0.9, 0.1], "quality", looks=3, report=kill_after(kill))
    found, _ = looked(resumed, tmp_path / "broken", [0.2, 0.9, 0.1], "quality", looks=3)
    assert (found.looks, found.best_look, found.step) == (unbroken.looks, unbroken.best_look, 12)
    assert equal(resumed, llama)


# Resuming ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def kill_after(step):
    def report(done, total, **metrics):
        if done == step:
            raise Killed

    return report


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("kills", [[1], [2], [4], [7], [11], [2, 3, 9]], ids=str)
def test_a_run_killed_after_some_steps_and_resumed_is_the_unbroken_run_bit_for_bit(llama, tmp_path, kills):
    told, told_again = [], []
    unbroken = run(copy.deepcopy(llama), tmp_path / "unbroken", report=lambda *at, **metrics: told.append((*at, metrics)))
    for kill in kills:
        with pytest.raises(Killed):
            run(copy.deepcopy(llama), tmp_path / "broken", report=kill_after(kill))
    resumed = run(copy.deepcopy(llama), tmp_path / "broken", report=lambda *at, **metrics: told_again.append((*at, metrics)))
    assert equal(resumed, unbroken)
    assert not equal(resumed, llama)
    assert 0 < len(told_again) <= 12 - kills[-1] + 1  # a checkpoint is written after the report, so one step is done again
    assert told_again == told[-len(told_again) :]


def test_a_resumed_reward_model_is_the_unbroken_one(policy_folder, tmp_path):
    def start():
        return RewardModel.from_policy(policy_folder, seed=0)

    unbroken = run(start(), tmp_path / "unbroken", GROUPS, group_loss)
    with pytest.raises(Killed):
        run(start(), tmp_path / "broken", GROUPS, group_loss, report=kill_after(3))
    assert equal(run(start(), tmp_path / "broken", GROUPS, group_loss), unbroken)


PROGRAM = """
import sys, time
sys.path[:0] = [{root!r}, {here!r}]
from pathlib import Path
from tasks.training.models import load_policy
from test_training_loop import run, sft_loss
def slow(model, rows):
    time.sleep(0.02)
    return sft_loss(model, rows)
def report(done, total, **metrics):
    print(done, flush=True)
run(load_policy(Path({policy!r})), Path({folder!r}), loss=slow, report=report, epochs=6)
"""


def test_a_process_killed_with_sigkill_and_resumed_is_the_unbroken_run(policy_folder, tmp_path):
    from tasks.training.models import load_policy

    settings = {"epochs": 6}
    unbroken = run(load_policy(policy_folder), tmp_path / "unbroken", **settings)
    program = PROGRAM.format(root=str(ROOT), here=str(Path(__file__).parent), policy=str(policy_folder), folder=str(tmp_path / "broken"))
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in child.stdout:
        if int(line) == 9:
            os.kill(child.pid, signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert 0 < read_checkpoint(tmp_path / "broken")["fitted"]["step"] < 24
    assert equal(run(load_policy(policy_folder), tmp_path / "broken", **settings), unbroken)


def test_the_order_of_micro_batches_has_no_effect_on_where_training_ends(llama, tmp_path):
    whole = run(copy.deepcopy(llama).double(), tmp_path / "whole", tokens_at_once=10**6)
    parts = run(copy.deepcopy(llama).double(), tmp_path / "parts", tokens_at_once=1)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
