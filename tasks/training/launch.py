"""A stage's work in several processes: started by the stage itself, as torchrun would, and watched from here.

The processes get what the stage was given, as JSON in a folder of their own, and leave progress, result or error there.
They read from a pipe that nobody writes to: it closes when this process dies, however it dies, and they end with it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tasks.errors
from tasks.errors import PreflineError
from tasks.stage import Metrics, Settings, Stage, StageResult, StageRun
from tasks.training.memory import forget_peak, memory_errors, peak_bytes

POLL_SECONDS = 0.1
LOG_LINES = 20


def side_by_side(body: Callable[..., Metrics]) -> Callable[..., Metrics]:
    """Run a stage's body in as many processes as compute.processes says. Where memory ends, say which key to lower."""

    @functools.wraps(body)
    def started(config: Settings, *, run: StageRun, **inputs: StageResult) -> Metrics:
        if config.compute.processes == 1 or dist.is_torchelastic_launched():
            forget_peak()
            with memory_errors(run.stage, config):
                metrics = body(config, run=run, **inputs)
            run.peak_bytes = peak_bytes()
            return metrics
        with tempfile.TemporaryDirectory(prefix="prefline-") as folder:
            desk = _Desk(Path(folder))
            desk.order.write_text(json.dumps(_order(body, config, run, inputs)), encoding="utf-8")
            return _watch(desk, config.compute.processes, run)

    return started


@dataclass(frozen=True)
class _Desk:
    """The folder through which the processes and the one that started them talk."""

    folder: Path

    @property
    def order(self) -> Path:
        return self.folder / "order.json"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.jsonl"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def error(self) -> Path:
        return self.folder / "error.json"

    def peak(self, rank: int) -> Path:
        return self.folder / f"peak-{rank}.txt"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


def _order(body: Callable[..., Metrics], config: Settings, run: StageRun, inputs: dict[str, StageResult]) -> dict[str, Any]:
    return {
        "module": body.__module__,
        "function": body.__name__,
        "settings": config.plain(),
        "inputs": {name: result.model_dump(mode="json") for name, result in inputs.items()},
        "run": {name: str(getattr(run, name)) for name in ("stage", "out", "failed", "checkpoints", "root")},
        "threads": max(1, torch.get_num_threads() // config.compute.processes),
    }


def _watch(desk: _Desk, processes: int, run: StageRun) -> Metrics:
    """Start the processes, pass on what they report, and return what the main one did. Raises what it raised."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # each sets its own number of threads; this quiets a warning
    with desk.log.open("wb") as log:
        child = subprocess.Popen(
            [*command, "-m", __name__, str(desk.folder)], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )
        try:
            told = _told(desk.progress)
            while child.poll() is None:
                for done, total, metrics in told():
                    run.report(done, total, **metrics)
                time.sleep(POLL_SECONDS)
            for done, total, metrics in told():
                run.report(done, total, **metrics)
        finally:
            child.terminate()
            child.wait()
    if desk.error.exists():
        error = json.loads(desk.error.read_text(encoding="utf-8"))
        raise getattr(tasks.errors, error["kind"], RuntimeError)(*error["said"])  # a bug keeps its traceback, as text
    if not desk.result.exists():
        last = "\n    ".join(desk.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        raise PreflineError(
            f"{run.stage}: the processes ended without a result (killed, perhaps for memory?). The last they said:\n    {last}",
            "Run again: it goes on from the last checkpoint.",
        )
    run.peak_bytes = sum(int(desk.peak(rank).read_text(encoding="ascii")) for rank in range(processes))
    return json.loads(desk.result.read_text(encoding="utf-8"))


def _told(progress: Path) -> Callable[[], Iterator[tuple[int, int, Metrics]]]:
    """A function that gives the whole lines of a growing file that it has not given before."""
    place = 0

    def news() -> Iterator[tuple[int, int, Metrics]]:
        nonlocal place
        if not progress.exists():
            return
        with progress.open("rb") as file:
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                place += len(line)
                yield tuple(json.loads(line))

    return news


# In the processes ---------------------------------------------------------------------------------------------------


class _Reporter:
    """The main process's observer: whatever it is told goes to the process that started it."""

    def __init__(self, desk: _Desk) -> None:
        self._file = desk.progress.open("a", encoding="utf-8", buffering=1)

    def started(self, stage: str, key: str, settings: dict[str, Any]) -> None: ...
    def finished(self, result: StageResult) -> None: ...
    def failed(self, stage: str, error: BaseException) -> None: ...

    def progressed(self, stage: str, done: int, total: int, metrics: Metrics) -> None:
        self._file.write(json.dumps([done, total, metrics]) + "\n")


def _end_with_parent() -> None:
    """End as soon as the other end of the pipe that is our standard input is closed."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _work(desk: _Desk) -> None:
    """What every process does: the stage's body, whose files count only where the main process writes them."""
    _end_with_parent()
    order = json.loads(desk.order.read_text(encoding="utf-8"))
    torch.set_num_threads(order["threads"])
    main = int(os.environ["RANK"]) == 0
    stage: Stage = getattr(importlib.import_module(order["module"]), order["function"])
    out, failed, checkpoints, root = (Path(order["run"][name]) for name in ("out", "failed", "checkpoints", "root"))
    with tempfile.TemporaryDirectory(prefix="prefline-") as scratch:
        watched = [_Reporter(desk)] if main else []
        run = StageRun(order["run"]["stage"], out if main else Path(scratch), failed, checkpoints, root, watched)
        inputs = {name: StageResult.model_validate(value) for name, value in order["inputs"].items()}
        try:
            metrics = stage.body(Settings.from_plain(order["settings"]), **inputs, run=run)
        except Exception as error:
            told = [error.what, error.advice] if isinstance(error, PreflineError) else [traceback.format_exc()]
            with suppress(FileExistsError), desk.error.open("x", encoding="utf-8") as file:  # the first to fail is the cause
                json.dump({"kind": type(error).__name__, "said": told}, file)
            os._exit(1)  # the siblings may wait for this process for ever: torchrun ends them
        desk.peak(int(os.environ["RANK"])).write_text(str(run.peak_bytes), encoding="ascii")
        if main:
            desk.result.write_text(json.dumps(metrics), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    _work(_Desk(Path(sys.argv[1])))
