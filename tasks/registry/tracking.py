"""What happened, in MLflow: one run for the pipeline, one child for each stage, closed with the right status.

An observer of stages. Every call names its run; MLflow's notion of an active run is never used, because it belongs to a
thread and opens a run of its own where there is none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.config import PipelineConfig
from tasks.errors import EnvironmentRefused
from tasks.registry.ledger import who
from tasks.registry.lineage import Lineage, config_hash
from tasks.registry.store import TRAINING_VIEW, Store, open_store, talking_to
from tasks.stage import Metrics, StageResult, StageRun, finite

if TYPE_CHECKING:
    from mlflow.entities import Metric

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

FLUSH_POINTS = 500
FLUSH_SECONDS = 2.0
RETRY_SECONDS = 60.0
"""After the store did not answer in the middle of a stage: training goes on, its points are kept for the next try."""

LONGEST_PARAM = 6000
PARAMS_AT_ONCE = 100
LARGEST_ARTIFACT = 5_000_000
ARTIFACTS = (".json", ".jsonl", ".md", ".html", ".png")

CURVES = "training"
"""Group of the metrics over steps. Final figures are in none: a curve ("training/kl") is not spoilt by a figure ("kl")."""

USES_OF_DATA = {
    "validate": "validation",
    "plan": "evaluation",
    "sft": "training",
    "reward_model": "training",
    "judge": "training",
    "policy": "training",
    "best_of_n": "evaluation",
    "evaluate": "evaluation",
}
"""What a stage needs the dataset for: MLflow's context of a dataset input."""


class MLflowRun:
    """The pipeline's run in MLflow. run_id: the parent's. store, lineage: what stages that register models need."""

    def __init__(self, store: Store, lineage: Lineage, run_id: str) -> None:
        self.store = store
        self.lineage = lineage
        self.run_id = run_id
        self._dataset: tuple[str, str] | None = None
        self._children: dict[str, str] = {}
        self._open: set[str] = set()
        self._points: dict[str, list[Metric]] = {}
        self._steps: dict[str, int] = {}
        self._next_flush = 0.0

    @classmethod
    def begin(cls, root: Path, config: PipelineConfig, lineage: Lineage, name: str, tags: dict[str, str]) -> MLflowRun:
        """Open the store and the parent run. name: the run's name. tags: of the parent, beside those of the lineage."""
        store = open_store(root, config.names.experiment)
        with talking_to(store.uri):
            run = store.client.create_run(store.experiment, run_name=name, tags={**lineage_tags(lineage), **origin_tags(), **tags})
            tracked = cls(store, lineage, run.info.run_id)
            tracked._log_params(run.info.run_id, config.model_dump(mode="json"))
        return tracked

    def below(self, name: str, config: PipelineConfig) -> MLflowRun:
        """A run below this one for a part of it that has its own settings, parent of its own stages' runs. On the same data."""
        own = {"mlflow.parentRunId": self.run_id, "prefline.part": name}
        tracked = MLflowRun.begin(self.store.root, config, replace(self.lineage, config=config_hash(config)), name, own)
        tracked._dataset = self._dataset
        return tracked

    @staticmethod
    def watching(run: StageRun) -> MLflowRun:
        """The MLflow run among a stage's observers."""
        for observer in run.observers:
            if isinstance(observer, MLflowRun):
                return observer
        raise LookupError(f"stage {run.stage} needs an MLflowRun among its observers")

    @property
    def url(self) -> str:
        """The parent run's page: on the server, or where `prefline ui` shows it."""
        server = self.store.uri.rstrip("/") if self.store.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{self.store.experiment}/runs/{self.run_id}{TRAINING_VIEW}"

    def child(self, stage: str) -> str:
        """The id of a stage's run."""
        return self._children[stage]

    # Observer -------------------------------------------------------------------------------------------------------

    def started(self, stage: str, key: str, settings: dict[str, Any]) -> None:
        with talking_to(self.store.uri):
            run_id = self._begin_child(stage, key)
            self._log_params(run_id, settings)
            if stage in USES_OF_DATA:
                self._log_dataset(run_id, USES_OF_DATA[stage])

    def progressed(self, stage: str, done: int, total: int, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = self._points.setdefault(stage, [])
        points.extend(Metric(f"{CURVES}/{name}", value, now, done) for name, value in finite(stage, metrics).items())
        self._steps[stage] = done
        if time.monotonic() >= self._next_flush or (len(points) >= FLUSH_POINTS and not self._waiting):
            self._try_flush(stage)

    def finished(self, result: StageResult) -> None:
        with talking_to(self.store.uri):
            new = result.stage not in self._open
            run_id = self._begin_child(result.stage, result.key) if new else self._children[result.stage]
            self._flush(result.stage)
            figures = {**result.metrics, "seconds": result.seconds}
            self._log_metrics(run_id, figures, self._steps.get(result.stage, 0))
            self._log_metrics(self.run_id, {f"{result.stage}/{name}": value for name, value in figures.items()}, 0)
            if result.skipped:
                self.store.client.set_tag(run_id, "prefline.skipped", result.skipped)
            if not new:
                self._log_files(run_id, result.path)
            self._end(run_id, "FINISHED")
        self._open.discard(result.stage)
        if result.stage == "snapshot":
            self._remember_dataset(result)

    def failed(self, stage: str, error: BaseException) -> None:
        """Close the stage's run. A store that does not answer is left for `end` to report: the error comes first."""
        with suppress(EnvironmentRefused), talking_to(self.store.uri):
            self._flush(stage)
            if stage in self._open:
                self.store.client.set_tag(self._children[stage], "mlflow.note.content", _said(error))
                self._end(self._children[stage], status_of(error))
                self._open.discard(stage)

    # The parent -----------------------------------------------------------------------------------------------------

    def describe(self, markdown: str) -> None:
        """Set the parent's description: what its page shows first."""
        with talking_to(self.store.uri):
            self.store.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def attach(self, file: Path) -> None:
        """Keep a file as an artifact of the parent."""
        with talking_to(self.store.uri):
            self.store.client.log_artifact(self.run_id, str(file))

    def attach_table(self, name: str, columns: Mapping[str, list[object]]) -> None:
        """Keep a table as an artifact of the parent, which MLflow's page shows as one. columns: by name, of equal length."""
        with talking_to(self.store.uri):
            self.store.client.log_table(self.run_id, dict(columns), name)

    def end(self, error: BaseException | None) -> None:
        """Close the parent, and any child that something in between left open."""
        status = status_of(error)
        with talking_to(self.store.uri):
            for stage in sorted(self._open):
                self._end(self._children[stage], status)
            self._open.clear()
            if error is not None:
                self.store.client.set_tag(self.run_id, "mlflow.note.content", f"**{status.lower()}**: {_said(error)}")
            self._end(self.run_id, status)

    # Calls ----------------------------------------------------------------------------------------------------------

    def _begin_child(self, stage: str, key: str) -> str:
        own = {"mlflow.parentRunId": self.run_id, "prefline.stage": stage, "prefline.key": key}
        tags = {**own, **lineage_tags(self.lineage), **origin_tags()}
        run = self.store.client.create_run(self.store.experiment, run_name=stage, tags=tags)
        self._children[stage] = run.info.run_id
        self._open.add(stage)
        return run.info.run_id

    def _end(self, run_id: str, status: RunStatus) -> None:
        self.store.client.set_terminated(run_id, status)

    def _log_params(self, run_id: str, settings: dict[str, Any]) -> None:
        """Settings by dotted name. MLflow cuts a long value in silence: such settings go into a file instead."""
        from mlflow.entities import Param

        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in flatten(settings)}
        if any(len(value) > LONGEST_PARAM for value in values.values()):
            self.store.client.log_dict(run_id, settings, "settings.json")
        params = [Param(name, value if len(value) <= LONGEST_PARAM else "see settings.json") for name, value in values.items()]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self.store.client.log_batch(run_id, params=params[first : first + PARAMS_AT_ONCE])

    def _log_metrics(self, run_id: str, metrics: Metrics, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.store.client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    @property
    def _waiting(self) -> bool:
        return self._next_flush - time.monotonic() > FLUSH_SECONDS

    def _try_flush(self, stage: str) -> None:
        try:
            with talking_to(self.store.uri):
                self._flush(stage)
        except EnvironmentRefused:
            self._next_flush = time.monotonic() + RETRY_SECONDS
        else:
            self._next_flush = time.monotonic() + FLUSH_SECONDS

    def _flush(self, stage: str) -> None:
        points = self._points.get(stage, [])
        while points:
            self.store.client.log_batch(self._children[stage], metrics=points[: 2 * FLUSH_POINTS])
            del points[: 2 * FLUSH_POINTS]

    def _log_files(self, run_id: str, folder: Path) -> None:
        """The stage's small files; models are for the registry."""
        for path in small_files(folder):
            place = path.parent.relative_to(folder).as_posix()
            self.store.client.log_artifact(run_id, str(path), None if place == "." else place)

    def _remember_dataset(self, snapshot: StageResult) -> None:
        """Every later stage that uses the data names them as its input: DVC's md5 as digest, their folder as source."""
        from tasks.data.snapshot import dataset

        data = dataset(snapshot, self.store.root)
        folder = data.folder.relative_to(self.store.root) if data.folder.is_relative_to(self.store.root) else data.folder
        self._dataset = data.md5, folder.as_posix()
        with talking_to(self.store.uri):
            self.store.client.set_tag(self.run_id, "prefline.dataset_md5", data.md5)
            self._log_dataset(self.run_id, "training")

    def _log_dataset(self, run_id: str, use: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if self._dataset:
            md5, source = self._dataset
            entity = Dataset(name="preferences", digest=md5, source_type="local", source=json.dumps({"uri": source}))
            self.store.client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", use)])])


@contextmanager
def closing(run: MLflowRun) -> Iterator[MLflowRun]:
    """End the run with the status that its block deserves; an error on the way out never hides the one inside."""
    try:
        yield run
    except BaseException as error:
        try:
            run.end(error)
        except EnvironmentRefused as outage:
            error.add_note(f"Its MLflow run could not be closed: {outage.what}")
        raise
    else:
        run.end(None)


def close_killed(store: Store, run_id: str) -> None:
    """Mark a run whose process is gone, and those below it that are open, as killed."""
    from mlflow.exceptions import MlflowException

    with talking_to(store.uri), suppress(MlflowException):  # the run may have been deleted, or be another store's
        run = store.client.get_run(run_id)
        for child in store.client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'"):
            close_killed(store, child.info.run_id)
        if run.info.status == "RUNNING":
            store.client.set_terminated(run_id, "KILLED")


def status_of(error: BaseException | None) -> RunStatus:
    """KILLED is for what ended the process from outside (Ctrl-C, SIGTERM, exit), FAILED for every error."""
    if error is None:
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _said(error: BaseException) -> str:
    return str(error)[:5000] or type(error).__name__


def lineage_tags(lineage: Lineage) -> dict[str, str]:
    return {
        "mlflow.source.git.commit": lineage.commit,
        "prefline.git_commit": lineage.commit,
        "prefline.git_dirty": str(lineage.dirty).lower(),
        "prefline.config_hash": lineage.config,
    }


def origin_tags() -> dict[str, str]:
    """What MLflow's page shows as the run's creator and source."""
    return {"mlflow.user": who(), "mlflow.source.name": "prefline", "mlflow.source.type": "LOCAL"}


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested settings with their dotted names; a list is one leaf."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def small_files(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.rglob("*")):
        inside_model = "model" in path.relative_to(folder).parts[:-1]
        if path.is_file() and path.suffix in ARTIFACTS and not inside_model and path.stat().st_size < LARGEST_ARTIFACT:
            yield path
