"""The nightly run without a work pool: this process waits for the schedule and starts each run in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.local_server import answers
from flows.prefect_side import PrefectAPI, named_api, require, use_project_home
from flows.servers import HOST, prefect_server
from flows.settings import read_yaml
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from prefect.schedules import Schedule

DEPLOYMENTS = "prefect.yaml"


def serve_schedule(root: Path, cron: str, timezone: str, port: int) -> None:
    """Serve the flow on the schedule given, or on that of prefect.yaml, until Ctrl-C.

    One run at a time. A night missed while nothing served is not made up for: the schedule is paused in between.
    """
    schedule = schedule_of(root, cron, timezone)
    with scheduling_api(root, port) as api, api.ready():
        from flows.pipeline import rlhf

        print(
            f"Serving the pipeline on the schedule {schedule.cron} ({schedule.timezone}); Prefect is at {api.ui}. Ctrl-C ends it.",
            flush=True,
        )
        rlhf.serve(name="serve", schedule=schedule, limit=1, print_starting_message=False, parameters={})


def schedule_of(root: Path, cron: str, timezone: str) -> Schedule:
    """The schedule given, what is left out taken from prefect.yaml. Raises ConfigError where it can't be one."""
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron

    try:
        default = read_yaml(root / DEPLOYMENTS, DEPLOYMENTS)["deployments"][0]["schedules"][0]
        cron, timezone = cron or default["cron"], timezone or default["timezone"]
    except (KeyError, IndexError, TypeError):
        if not (cron and timezone):
            raise ConfigError(f"{DEPLOYMENTS} holds no schedule with cron and timezone.", "Give both: --cron and --timezone.") from None
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        reason = str(error).splitlines()[-2].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise ConfigError(
            f"The schedule {cron!r} in {timezone!r} can't be kept: {reason}",
            'Five fields of cron, and a time zone by name: --cron "0 2 * * *" --timezone Europe/Berlin',
        ) from None
    return Cron(cron, timezone=timezone)


@contextmanager
def scheduling_api(root: Path, port: int) -> Iterator[PrefectAPI]:
    """A server that can schedule: the one named, the one of `prefline ui`, or one started here."""
    home = use_project_home(root)
    here = f"http://{HOST}:{port}"
    named = named_api(home) or (f"{here}/api" if answers(f"{here}/api/health") else "")
    if named:
        require(named)
        yield PrefectAPI(named, ui=named.removesuffix("/api"), heartbeats=True)
        return
    with prefect_server(root, port) as server:
        yield PrefectAPI(f"{server.address}/api", ui=server.address, heartbeats=True)
