"""A run's own record, runs/<run>/run.json: what `prefline status` shows, whatever else is running or not.

Written whole after every step. A lock beside it lives as long as its process, so that a run that was killed can be told
from one at work.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from flows.clock import elapsed
from tasks.costs import costs
from tasks.errors import EnvironmentRefused, PreflineError
from tasks.registry.decision import Decision
from tasks.registry.lineage import Lineage
from tasks.stage import Metrics, StageResult

RunState = Literal["running", "finished", "failed", "interrupted", "killed"]
StageState = Literal["waiting", "running", "done", "skipped", "failed", "interrupted"]


class StageRecord(BaseModel):
    """A stage of a run. seconds, peak_bytes: of the work that made the result, in whichever run that was. skipped: why it was."""

    model_config = ConfigDict(extra="forbid")

    name: str
    state: StageState = "waiting"
    key: str = ""
    path: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    metrics: Metrics = {}
    skipped: str = ""


class RunRecord(BaseModel):
    """A run. what: "run", or the one stage that it was for. costs: seconds by tool. seconds: of the whole run."""

    model_config = ConfigDict(extra="forbid")

    run: str
    what: str
    state: RunState
    started: str
    ended: str = ""
    seconds: float = 0.0
    error: str = ""
    commit: str
    dirty: bool
    config_hash: str
    config: dict[str, Any]
    mlflow_run: str = ""
    mlflow_url: str = ""
    prefect_run: str = ""
    prefect_url: str = ""
    stages: list[StageRecord]
    decision: Decision | None = None
    costs: dict[str, float] = {}

    def stage(self, name: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def price_per_hour(self) -> float:
        """Of the machine, as the configuration has it; 0 where it does not say."""
        return float(self.config.get("price_per_hour", 0.0))

    def take_times(self) -> None:
        """Note how long this process has run, and what of it each tool took."""
        self.seconds, self.costs = elapsed(), {str(tool): seconds for tool, seconds in costs().items()}

    def save(self, root: Path) -> None:
        """Replace run.json. Raises EnvironmentRefused where the disk does not take it."""
        path = folder_of(root, self.run) / "run.json"
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise EnvironmentRefused(
                f"{path} can't be written: {error.strerror}.", "Is the disk full? Finished stages are kept."
            ) from error


def folder_of(root: Path, run: str) -> Path:
    return root / "runs" / run


def new_run_id() -> str:
    """Sorts by time, reads as a time, and differs for two runs of one second."""
    return f"{datetime.now():%Y-%m-%d-%H%M%S}-{secrets.token_hex(2)}"


class Recorder:
    """An observer of stages that keeps the run's record. A context: it closes the record with the state that the block deserves."""

    def __init__(self, root: Path, record: RunRecord) -> None:
        self.root = root
        self.record = record
        self._lock = _lock_of(root, record.run)

    @classmethod
    def begin(cls, root: Path, run: str, what: str, lineage: Lineage, config: dict[str, Any], stages: Sequence[str]) -> Recorder:
        record = RunRecord(
            run=run,
            what=what,
            state="running",
            started=_now(),
            commit=lineage.commit,
            dirty=lineage.dirty,
            config_hash=lineage.config,
            config=config,
            stages=[StageRecord(name=name) for name in stages],
        )
        folder_of(root, run).mkdir(parents=True, exist_ok=True)
        return cls(root, record)

    def __enter__(self) -> Self:
        self._lock.acquire()
        self.record.save(self.root)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.record.state = "finished" if error is None else "failed" if isinstance(error, Exception) else "interrupted"
        self.record.error = "" if error is None else str(error) or type(error).__name__
        self.record.ended = _now()
        try:
            with suppress(EnvironmentRefused) if error else nullcontext():  # the first error is the one to tell
                self.record.save(self.root)
        finally:
            self._lock.release()

    def started(self, stage: str, key: str, settings: dict[str, Any]) -> None:
        self._update(stage, state="running", key=key)

    def progressed(self, stage: str, done: int, total: int, metrics: Metrics) -> None:
        """Nothing: a record is written when a stage begins and ends."""

    def finished(self, result: StageResult) -> None:
        self._update(
            result.stage,
            state="skipped" if result.skipped else "done",
            key=result.key,
            path=str(result.path),
            seconds=result.seconds,
            peak_bytes=result.peak_bytes,
            metrics=result.metrics,
            skipped=result.skipped,
        )

    def failed(self, stage: str, error: BaseException) -> None:
        self._update(stage, state="failed" if isinstance(error, Exception) else "interrupted")

    def _update(self, name: str, **values: Any) -> None:
        stages = self.record.stages
        place = next(i for i, stage in enumerate(stages) if stage.name == name)
        stages[place] = stages[place].model_copy(update=values)
        self.record.save(self.root)


# Reading ------------------------------------------------------------------------------------------------------------


def read_record(root: Path, run: str = "") -> RunRecord:
    """A run's record; of the newest run by default; a run's beginning is enough to name it. Raises PreflineError."""
    names = [name for name in _run_names(root) if name.startswith(run)]
    if not names:
        raise PreflineError(
            f"There is no run {run} in {root / 'runs'}." if run else f"There is no run in {root / 'runs'} yet.", "prefline run makes one."
        )
    if run and len(names) > 1 and run not in names:
        raise PreflineError(f"{len(names)} runs begin with {run}.", f"The newest: {', '.join(names[-3:])}")
    name = run if run in names else names[-1]
    try:
        record = RunRecord.model_validate_json((folder_of(root, name) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise PreflineError(
            f"{folder_of(root, name) / 'run.json'} can't be read ({str(error).splitlines()[0]}).", "Name another run."
        ) from None
    if record.state == "running" and not _is_alive(root, name):
        record.state = "killed"
    return record


def killed_runs(root: Path) -> Iterator[RunRecord]:
    """Runs whose process ended without a word, by a kill or a power cut. Each is marked as killed."""
    for name in _run_names(root):
        with suppress(OSError, ValueError):
            if json.loads((folder_of(root, name) / "run.json").read_text(encoding="utf-8"))["state"] != "running":
                continue
            record = read_record(root, name)
            if record.state == "killed":
                record.ended = _now()
                record.save(root)
                yield record


def _run_names(root: Path) -> list[str]:
    return sorted(path.parent.name for path in (root / "runs").glob("*/run.json"))


def _lock_of(root: Path, run: str) -> FileLock:
    return FileLock(folder_of(root, run) / "run.lock")


def _is_alive(root: Path, run: str) -> bool:
    lock = _lock_of(root, run)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
