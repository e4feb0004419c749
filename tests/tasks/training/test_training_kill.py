"""Every training stage as a process of its own, really killed, at a moment nobody chose: it ends in the very files of an unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from tasks.config import PipelineConfig
from tasks.stage import Context, StageResult

ROOT = Path(__file__).parents[3]
PAUSE = 0.03
"""Seconds: about as long as a step of the toy set takes."""


class Prints:
    """Says each step that is reported."""

    def started(self, stage, key, settings): ...

    def finished(self, result): ...

    def failed(self, stage, error): ...

    def progressed(self, stage, done, total, metrics):
        print(done, flush=True)


def work(order):
    """What the process does: the stage of an order, as JSON."""
    stage = getattr(import_module(order["module"]), order["function"])
    inputs = {name: StageResult.model_validate(value) for name, value in order["inputs"].items()}
    context = Context(Path(order["root"]), Path(order["runs"]), [Prints()])
    stage.run(PipelineConfig.model_validate(order["config"]), inputs, context)


PROGRAM = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from test_training_kill import work
work(json.loads(sys.argv[1]))
"""
OFTEN = {"checkpoint_seconds": 0}
LEARNS = {"epochs": 3, "batch": 4, "looks": 2, "checkpoint_seconds": 0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sft", {}),
        ("reward_model", {}),
        ("judge", {}),
        ("reward_model", {"reward_model": {"members": 2}}),
        ("policy", {"policy": OFTEN}),
        ("policy", {"policy": OFTEN | {"method": "grpo"}}),
        ("policy", {"policy": OFTEN | {"method": "dpo", "dpo": LEARNS}}),
        ("policy", {"policy": OFTEN | {"method": "rejection", "rejection": LEARNS | {"answers": 2}}}),
    ],
    ids=["SFT", "reward model", "judge", "ensemble", "PPO", "GRPO", "DPO", "rejection"],
)
def test_a_stage_killed_anywhere_ends_in_the_files_of_an_unbroken_run(line, toy, tmp_path, name, changes):
    config = toy(**changes)
    unbroken, seen = line.reported(name, tmp_path / "whole", config)
    stage = line.stage(name)
    order = {
        "module": stage.body.__module__,
        "function": stage.body.__name__,
        "inputs": {each: line[each].model_dump(mode="json") for each in stage.inputs},
        "config": config.model_dump(mode="json"),
        "root": str(line.context.root),
        "runs": str(tmp_path / "broken"),
    }
    steps, pause = random.randrange(1, len(seen)), random.uniform(0, PAUSE)
    killed_after(order, steps, pause)
    resumed = line.run(name, config, runs=tmp_path / "broken")
    assert resumed.digest == unbroken.digest, f"killed {pause:.3f} s after report {steps} of {len(seen)}"
    assert resumed.metrics == unbroken.metrics


def killed_after(order, steps, pause):
    """Start the stage, and kill it a moment after it has reported so many steps."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(order)], stdout=subprocess.PIPE, text=True, env=environment) as child:
        for _ in range(steps):
            assert child.stdout.readline()
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
    assert child.returncode in (-signal.SIGKILL, 0)  # the last step may have been faster than the signal
