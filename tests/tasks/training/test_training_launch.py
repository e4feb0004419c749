"""A stage in two real processes: what it reports, writes and raises, and that nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tasks.config import PipelineConfig
from tasks.errors import DataRefused, PreflineError
from tasks.stage import Settings, StageResult, StageRun, stage
from tasks.training.launch import side_by_side
from tasks.training.processes import Processes

ROOT = Path(__file__).parents[3]
LEAST = 50 * 2**20
"""Bytes: a process that has imported torch takes more."""


@stage("pair", reads=("seed", "compute", "model"), package="training")
@side_by_side
def pair(config, *, data, run):
    """Does what config.model names."""
    here = Processes(config.compute)
    run.report(1, 2, loss=0.5, rank=float(here.rank))
    (run.out / f"{here.rank}.txt").write_text(data.digest)
    (run.checkpoints / f"pid-{here.rank}").write_text(str(os.getpid()))
    if config.model == "refuse" and here.main:
        raise DataRefused("row 3 is empty.", "Fill it.")
    if config.model == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.model == "crash":
        raise ValueError("a bug, surely")
    if config.model in ("hang", "refuse"):  # the sibling of the one that refuses waits for ever
        time.sleep(60)
    run.report(2, 2)
    return {"rank": here.rank, "count": here.count, "total": float(here.total(torch.tensor(float(here.rank)))), "seed": config.seed}


class Watcher:
    def __init__(self):
        self.told = []

    def progressed(self, *told):
        self.told.append(told)


def perform(folder, what, processes=2):
    for name in ("out", "checkpoints"):
        (folder / name).mkdir(exist_ok=True)
    watcher = Watcher()
    run = watcher.run = StageRun("pair", folder / "out", folder / "failed", folder / "checkpoints", folder, [watcher])
    config = PipelineConfig.model_validate({"seed": 7, "model": what, "compute": {"device": "cpu", "processes": processes}})
    data = StageResult(stage="data", key="k", path=folder, digest="abc", metrics={}, seconds=0.0)
    watcher.metrics = pair.body(Settings(config, pair.reads), data=data, run=run)
    return watcher


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Our own module, for the processes too; theirs is __main__ elsewhere."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))


def test_the_main_process_reports_writes_and_returns(tmp_path):
    watcher = perform(tmp_path, "work")
    assert watcher.metrics == {"rank": 0, "count": 2, "total": 1.0, "seed": 7}
    assert watcher.told == [("pair", 1, 2, {"loss": 0.5, "rank": 0.0}), ("pair", 2, 2, {})]
    assert watcher.run.peak_bytes > 2 * LEAST  # of both
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"0.txt": "abc"}


def test_one_process_needs_no_others(tmp_path):
    watcher = perform(tmp_path, "work", processes=1)
    assert (watcher.metrics["count"], len(watcher.told)) == (1, 2)
    assert watcher.run.peak_bytes > LEAST
    assert int((tmp_path / "checkpoints" / "pid-0").read_text()) == os.getpid()
    assert not dist.is_initialized()


def test_what_a_process_refuses_is_raised_here_and_its_sibling_is_not_waited_for(tmp_path):
    begun = time.monotonic()
    with pytest.raises(DataRefused, match="row 3 is empty") as caught:
        perform(tmp_path, "refuse")
    assert caught.value.advice == "Fill it."
    assert time.monotonic() - begun < 55


def test_a_bug_is_told_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*in pair(.|\n)*ValueError: a bug, surely"):
        perform(tmp_path, "crash")


def test_processes_that_are_killed_leave_a_word(tmp_path):
    with pytest.raises(PreflineError, match=r"pair: the processes ended without a result(.|\n)*SIGKILL"):
        perform(tmp_path, "die")


def test_the_processes_end_with_the_one_that_started_them(tmp_path):
    program = f"from test_training_launch import *; perform(Path({str(tmp_path)!r}), 'hang')"
    parent = subprocess.Popen([sys.executable, "-c", program])
    files = [tmp_path / "checkpoints" / f"pid-{rank}" for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(path.exists() and path.read_text() for path in files):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = [psutil.Process(int(path.read_text())) for path in files]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert (len(gone), alive) == (2, [])
