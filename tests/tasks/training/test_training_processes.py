"""Several processes: real ones, on gloo, against one process."""

import itertools
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tasks.errors import EnvironmentRefused
from tasks.training.loop import Validation, fit, own_batches
from tasks.training.models import RewardModel, load_policy, save
from tasks.training.processes import Processes, layers_of, use_threads
from tasks.training.reward_model import Group, group_loss
from tasks.training.sft import SFTRow, sft_loss
from tasks.training_config import ComputeConfig, FitConfig

ROOT = Path(__file__).parents[3]
EOS = 1
ROWS = [SFTRow([3, *range(10, 10 + n), 4], [*range(50, 50 + m), EOS]) for n, m in itertools.product((1, 4, 7), (1, 3, 9))]
GROUPS = [Group([3, 40 + n, 4], [[60 + n, EOS], [*range(70, 71 + n), EOS], [99, EOS]], [(0, 1), (2, 1)], together=True) for n in range(9)]
CONFIG = FitConfig(epochs=2, batch=3, learning_rate=1e-2, tokens_at_once=30, checkpoint_seconds=0, looks=3)
FIRST = Validation(lambda model, share: {"share": share}, "share", higher_is_better=False)
"""Of three looks it likes the first."""
KINDS = {"sft": (load_policy, ROWS, sft_loss), "reward": (lambda folder: RewardModel.from_policy(folder, seed=0), GROUPS, group_loss)}

PROGRAM = """
import json, sys
sys.path[:0] = [{root!r}, {here!r}]
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_training_processes import *
try_it(Path({folder!r}), Path({policy!r}), {sharding!r})
"""


def try_it(folder, policy_folder, sharding):
    """What each of two processes does; each leaves what it found as JSON."""
    device = "cpu" if torch.cuda.is_available() else "auto"  # this machine may have fewer than two GPUs
    here = Processes(ComputeConfig(device=device, processes=2, sharding=sharding))
    found = {}
    for kind in KINDS:
        told, model = fitted(kind, policy_folder, folder / kind, here)
        found[kind] = told
        if here.main:
            torch.save(model.state_dict(), folder / f"{kind}.pt")
    with suppress(KeyboardInterrupt):
        fitted("sft", policy_folder, folder / "stopped", here, stop_after=4)
    found["resumed"], _ = fitted("sft", policy_folder, folder / "stopped", here)
    _, first = fitted("reward", policy_folder, folder / "best", here, validation=FIRST)
    if here.main:
        torch.save(first.state_dict(), folder / "best.pt")
    own = here.share(list(range(7)))
    found["share"], found["join"] = own, here.join([value * 10 for value in own])
    found["total"] = here.total(torch.tensor([float(len(own))])).item()
    found["main"] = [here.from_main(lambda: {"from": here.rank}), here.agreed(here.main)]
    if sharding == "none":
        layer = torch.nn.Linear(2, 1)
        if here.main:
            (layer(torch.tensor([[1.0, 2.0]])) * 3).sum().backward()
        here.sum_gradients(layer.parameters())
        found["gradients"] = [layer.weight.grad.tolist(), layer.bias.grad.tolist()]
    (folder / f"{here.rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=["none", "fsdp"])
def two(request, tmp_path_factory, tokenizer, make_llama):
    """What two processes found, the folder they worked in, and the policy they began with."""
    folder = tmp_path_factory.mktemp("two")
    save(make_llama(len(tokenizer)), tokenizer, folder / "policy")
    program = folder / "program.py"
    places = {"root": str(ROOT), "here": str(Path(__file__).parent), "folder": str(folder), "policy": str(folder / "policy")}
    program.write_text(PROGRAM.format(**places, sharding=request.param))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder


def fitted(kind, policy_folder, checkpoints, here=None, stop_after=None, validation=None):
    """The losses of all steps, and the model."""
    make, rows, loss = KINDS[kind]
    model, told = make(policy_folder), []

    def report(done, total, **metrics):
        told.append(metrics["loss"])
        if done == stop_after:
            raise KeyboardInterrupt

    fit(model, rows, loss, CONFIG, seed=5, checkpoints=checkpoints, report=report, here=here, validation=validation)
    return told, (here.plain(model) if here else model)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_losses_and_weights_of_one(two, tmp_path, kind):
    found, folder = two
    alone, model = fitted(kind, folder / "policy", tmp_path)
    assert found[0][kind] == found[1][kind] == pytest.approx(alone, abs=1e-5)
    assert alone[-1] < alone[0] - 0.1
    weights = torch.load(folder / f"{kind}.pt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3)


def test_two_processes_end_in_the_weights_of_the_best_look(two, tmp_path):
    _, folder = two
    _, model = fitted("reward", folder / "policy", tmp_path, validation=FIRST)
    weights = torch.load(folder / "best.pt")
    last = torch.load(folder / "reward.pt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3)
    assert not torch.equal(weights["body.score.weight"], last["body.score.weight"])


def test_two_processes_go_on_from_their_checkpoint(two):
    found, _ = two
    assert found[0]["resumed"] == found[0]["sft"][-3:]  # of six steps the fourth was made but not yet kept


def test_shares_are_joined_in_their_order_and_sums_are_over_all(two):
    found, _ = two
    assert [each["share"] for each in found] == [[0, 2, 4, 6], [1, 3, 5]]
    for each in found:
        assert each["join"] == [0, 10, 20, 30, 40, 50, 60]
        assert each["total"] == 7.0
        assert each["main"] == [{"from": 0}, True]


def test_gradients_are_summed_and_a_process_without_rows_counts_as_zeros(two):
    found, _ = two
    if "gradients" in found[0]:  # with sharding they are summed on the way back
        assert [each["gradients"] for each in found] == [[[[3.0, 6.0]], [3.0]]] * 2


def test_alone_every_exchange_is_the_identity():
    here = Processes(ComputeConfig())
    assert (here.rank, here.count, here.main) == (0, 1, True)
    assert here.join(here.share([3, 1, 2])) == [3, 1, 2]
    assert here.from_main(lambda: "x") == "x"
    assert here.total(torch.tensor(2.0)) == 2.0


def test_a_sharded_window_is_cut_into_as_many_batches_everywhere():
    class Sharded(Processes):
        sharded = True

        def __init__(self, rank):
            self._rank = rank

        rank = property(lambda self: self._rank)
        count = property(lambda self: 2)

    window = [ROWS[i] for i in (8, 0, 7)]  # one process has two rows that don't fit together, the other has one
    cuts = [own_batches(window, 10, Sharded(rank)) for rank in range(2)]
    assert [len(cut) for cut in cuts] == [2, 2]
    assert sorted(ROWS.index(row) for cut in cuts for part, factor in cut if factor for row in part) == [0, 7, 8]
    assert cuts[1][1][1] == 0.0


def test_bf16_computes_in_it_and_keeps_weights_in_fp32(policy_folder, tmp_path):
    here = Processes(ComputeConfig(precision="bf16"))
    seen = []

    def loss(model, rows):
        model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        return sft_loss(model, rows)

    model = load_policy(policy_folder)
    told = []

    def report(*_, **metrics):
        told.append(metrics["loss"])

    fit(model, ROWS, loss, CONFIG, seed=5, checkpoints=tmp_path / "b", report=report, here=here)
    exact, _ = fitted("sft", policy_folder, tmp_path / "a")
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert told == pytest.approx(exact, rel=0.05)
    assert told != pytest.approx(exact, rel=1e-5)
    Processes(ComputeConfig())  # later stages may want fp32 again


def test_a_gpu_that_is_not_there_is_refused_by_its_key():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentRefused, match=r"compute\.device: cuda"):
        Processes(ComputeConfig(device="cuda"))


def test_processes_that_nobody_started_are_refused():
    with pytest.raises(EnvironmentRefused, match=r"compute\.processes is 2, but 1 run"):
        Processes(ComputeConfig(processes=2))


def test_layers_are_the_blocks_of_the_transformer(llama):
    assert layers_of(llama) == list(llama.model.layers)


def test_threads_are_what_was_asked_for(monkeypatch):
    before = torch.get_num_threads()
    try:
        assert use_threads(2) == torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert 1 <= use_threads(0) <= os.cpu_count()
    finally:
        torch.set_num_threads(before)
