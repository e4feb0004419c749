"""Prefect's side of a run: an API to report to, a stage as one of its tasks, and the artifacts that its pages show."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.clock import own_time, prefect_time
from flows.local_server import answers, local_server
from flows.methods_table import methods_markdown
from flows.record import RunRecord, folder_of
from flows.summary import gate_rows, markdown
from tasks.config import PipelineConfig
from tasks.errors import EnvironmentRefused
from tasks.evaluation.compared import Compared
from tasks.evaluation.result import MARKDOWN
from tasks.stage import Context, Stage, StageResult

if TYPE_CHECKING:
    from prefect.settings import Setting

UI_URL = "http://127.0.0.1:4200"
"""Where `prefline ui` shows what a run without a server has written."""

LARGEST_IMAGE = 200_000
LARGEST_MARKDOWN = 100_000


@dataclass(frozen=True)
class PrefectAPI:
    """url: of a server that answers, or of one that is starting. wait: until it answers. ui: its pages, "" for what its url says.

    heartbeats: send signs of life from a thread, for which every run waits a second at its end. Only a server that looks
    for dead runs has a use for them.
    """

    url: str
    wait: Callable[[], None] = lambda: None
    ui: str = ""
    heartbeats: bool = False

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The block's flows report to this API. Its time counts as Prefect's, but for own_time."""
        with prefect_time():
            self.wait()
            from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_UI_URL, temporary_settings

            settings: dict[Setting, Any] = {PREFECT_API_URL: self.url}
            if not self.heartbeats:
                settings[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
            if self.ui:
                settings[PREFECT_UI_URL] = self.ui
            with temporary_settings(settings):
                try:
                    yield
                finally:
                    _drain()


@contextmanager
def prefect_api(root: Path) -> Iterator[PrefectAPI]:
    """The server that PREFECT_API_URL or a profile names, or one of this run's own, which starts while the block goes on."""
    with prefect_time():
        home = use_project_home(root)
        named = named_api(home)
        if named:
            require(named)
            import prefect.flows

            with own_time():
                yield PrefectAPI(named, heartbeats=True)
            return
        with local_server(home) as server:
            import prefect.flows  # noqa: F401  (its second of importing is Prefect's)

            with own_time():
                yield PrefectAPI(server.url, wait=server.ready, ui=UI_URL)


def use_project_home(root: Path) -> Path:
    """Keep Prefect's files in the project, unless the user says where. Before Prefect is imported: it looks only once."""
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.setdefault("PREFECT_HOME", str(root / ".prefect"))
    # What fails is told once, by the command line; Prefect's pages still get every line.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()


def named_api(home: Path) -> str:
    """The server that PREFECT_API_URL or a profile of Prefect names; "" for none."""
    if not os.environ.get("PREFECT_API_URL") and not (home / "profiles.toml").exists():
        return ""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or ""


def require(url: str) -> None:
    if not answers(f"{url.rstrip('/')}/health"):
        raise EnvironmentRefused(
            f"No Prefect server answers at {url}.", "Start it, or unset PREFECT_API_URL: a run does without a server of its own."
        )


def _drain() -> None:
    """Wait until the server has what was sent in the background: states of tasks, logs."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all()
    APILogWorker.drain_all()


# Stages as tasks ----------------------------------------------------------------------------------------------------


def as_task(
    stage: Stage, config: PipelineConfig, inputs: dict[str, StageResult], context: Context, found: StageResult | None, label: str = ""
) -> StageResult:
    """Run a stage as a Prefect task of its name, keyed by our own key.

    found: a result whose files were checked; only with one may Prefect answer from its cache. label: tells tasks of one
    stage apart.
    """
    from prefect import Task
    from prefect.cache_policies import NO_CACHE, CachePolicy

    shown_as = f"{stage.name} {label}".rstrip()

    def work() -> StageResult:
        with own_time():
            result = found or stage.run(config, inputs, context)
        show_stage(result, shown_as)
        return result

    key = f"{stage.name}-{stage.key(config, inputs, context.root)}"
    policy = CachePolicy.from_cache_key_fn(lambda *_: key) if stage.cached else NO_CACHE
    with prefect_time():
        task = Task(
            work,
            name=stage.name,
            task_run_name=shown_as,
            cache_policy=policy,
            refresh_cache=found is None,
            persist_result=True,
            result_serializer="json",
            retries=0,
        )
        made = task()
    return found or made


# Artifacts ----------------------------------------------------------------------------------------------------------


def show_stage(result: StageResult, name: str) -> None:
    """A stage's metrics as a table, its Markdown and its small pictures. name: of the stage, and what it was done for."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    if result.metrics:
        rows = [{"metric": metric, "value": value} for metric, value in result.metrics.items()]
        create_table_artifact(rows, key=_key(f"{name}-metrics"), description=f"What {name} reached.")
    for path in sorted(result.path.glob("*.md")):
        create_markdown_artifact(path.read_text(encoding="utf-8")[:LARGEST_MARKDOWN], key=_key(f"{name}-{path.stem}"))
    for path in sorted(result.path.glob("*.png")):
        show_picture(path, f"{name}-{path.stem}")


def show_picture(path: Path, name: str) -> None:
    """A picture, unless it is too large for Prefect's pages."""
    from prefect.artifacts import create_image_artifact

    if path.stat().st_size <= LARGEST_IMAGE:
        picture = base64.b64encode(path.read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{picture}", key=_key(name), description=path.stem)


def show_run(record: RunRecord, root: Path) -> None:
    """The flow run's own artifacts: the result, the gates, the report, the way to MLflow."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

    with prefect_time():
        create_markdown_artifact(markdown(record), key="result", description="What came of the run.")
        if record.decision:
            create_table_artifact(gate_rows(record.decision), key="gates", description="What promotion required, and what was found.")
            report = (folder_of(root, record.run) / MARKDOWN).read_text(encoding="utf-8")
            create_markdown_artifact(report[:LARGEST_MARKDOWN], key="report", description="The decision and its evidence.")
        if record.mlflow_url:
            create_link_artifact(record.mlflow_url, link_text="This run in MLflow", key="mlflow")


def show_compared(found: Compared, picture: Path, mlflow_url: str) -> None:
    """The artifacts of a flow run that compared methods: table, picture, the way to MLflow."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    with prefect_time():
        create_markdown_artifact(methods_markdown(found), key="methods", description="What each method reached.")
        if picture.exists():
            show_picture(picture, "methods-picture")
        create_link_artifact(mlflow_url, link_text="This run in MLflow", key="mlflow")


def _key(name: str) -> str:
    """As Prefect wants it: lower case, digits and hyphens."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())
