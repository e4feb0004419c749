"""PPO and RLOO in two real processes, on gloo, against one."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from tasks.training.models import RewardModel, load_policy, save
from tasks.training.online import run_rounds
from tasks.training.onlooker import Look
from tasks.training.processes import Processes
from tasks.training.rollouts import Models
from tasks.training.sampling import Sampling
from tasks.training.sft import SFTRow
from tasks.training.updates import Learner
from tasks.training_config import ComputeConfig, KLConfig, PolicyConfig

ROOT = Path(__file__).parents[3]
EOS = 1
PROMPTS = [[3, *range(10, 10 + n), 4] for n in (1, 5, 2, 9, 3)]
DEMONSTRATIONS = [SFTRow([3, 40 + n, 4], [*range(60, 61 + n), EOS]) for n in range(5)]
COMMON = {"rounds": 3, "answers": 8, "minibatch": 4, "epochs": 2, "judge_every": 2, "learning_rate": 1e-3, "clip_gradient": 0.5}
METHODS = {
    "ppo": PolicyConfig(**COMMON, pretraining_weight=0.2, kl=KLConfig(target=2.0, horizon=50)),
    "rloo": PolicyConfig(**COMMON, method="rloo", kl=KLConfig(place="loss", estimator="k3")),
}

PROGRAM = """
import json, sys
sys.path[:0] = [{root!r}, {here!r}]
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_training_online_processes import *
here = Processes(ComputeConfig(device="cpu", processes=2))
folder = Path({folder!r})
found = {{name: trained(name, folder, folder / name, here) for name in METHODS}}
(folder / f"{{here.rank}}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def trained(name, folder, checkpoints, here):
    """The figures of all rounds, and a sum over the weights at the end."""
    config = METHODS[name]
    policy, reference = (load_policy(folder / "policy") for _ in range(2))
    critic = RewardModel.from_policy(folder / "policy", 1) if name == "ppo" else None
    models = Models(policy, partial(nullcontext, reference), RewardModel.from_policy(folder / "policy", 2), critic)

    def look(number, _):
        assert here.main
        return Look(number, kl=0.0, length=1.0, stopped=1.0, own=[0.0], judge=[float(number)], gold=None)

    learner = Learner(models, config, here, DEMONSTRATIONS if name == "ppo" else [])
    told = run_rounds(learner, PROMPTS, look, sampling=Sampling(8), eos=EOS, seed=3, checkpoints=checkpoints, report=lambda *_, **__: None)
    return {"history": told.history, "best": told.best_round, "weights": sum(p.double().abs().sum().item() for p in policy.parameters())}


@pytest.fixture(scope="module")
def two(tmp_path_factory, tokenizer, make_llama):
    """What two processes found, and the folder with the policy that they began with."""
    folder = tmp_path_factory.mktemp("two")
    save(make_llama(len(tokenizer)), tokenizer, folder / "policy")
    program = folder / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT), here=str(Path(__file__).parent), folder=str(folder)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_have_the_answers_losses_and_weights_of_one(two, tmp_path, name):
    (first, second), folder = two
    alone = trained(name, folder, tmp_path, Processes(ComputeConfig(device="cpu")))
    assert first[name] == second[name]
    assert first[name]["best"] == alone["best"] == 3
    assert len(alone["history"]) == 3
    for ours, theirs in zip(first[name]["history"], alone["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-4)
    assert first[name]["weights"] == pytest.approx(alone["weights"], rel=1e-6)
    assert torch.load(folder / name / "checkpoint.pt", weights_only=True)["progress"]["done"] == 3
