"""The servers for people, and the schedule: on real ports, with the shipped prefect.yaml."""

import os
import shutil
import socket
import urllib.request
from pathlib import Path

import pytest
import yaml

from flows.local_server import answers
from flows.schedule import schedule_of
from flows.servers import both_servers
from tasks.errors import ConfigError, EnvironmentRefused

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def ports():
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def test_both_answer_over_the_projects_stores_and_both_end(project, ports, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(project / ".prefect"))
    with both_servers(project, *ports) as (mlflow, prefect):
        assert answers(f"{mlflow.address}/health")
        assert answers(f"{prefect.address}/api/health")
        with urllib.request.urlopen(f"{prefect.address}/ui-settings") as settings:  # the page must ask the port it came from
            assert f'"api_url":"{prefect.address}/api"' in settings.read().decode()
        processes = mlflow.process, prefect.process
    assert [process.poll() is not None for process in processes] == [True, True]
    assert not answers(f"{mlflow.address}/health")
    assert (project / ".prefect" / "prefect.db").exists()


def test_a_port_that_is_taken_is_named(project, ports):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        with pytest.raises(EnvironmentRefused, match=f"Port {ports[0]}, for MLflow, is taken"), both_servers(project, *ports):
            pass


def test_with_a_tracking_server_there_is_nothing_to_start(project, ports, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking.example.org")
    with pytest.raises(EnvironmentRefused, match=r"http://me:\.\.\.@tracking"), both_servers(project, *ports):
        pass


def test_the_shipped_deployment_is_whole(project):
    (deployment,) = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    file, _, name = deployment["entrypoint"].partition(":")
    assert f"def {name}(" in (REPOSITORY / file).read_text()
    assert deployment["concurrency_limit"] == 1
    shutil.copy(REPOSITORY / "prefect.yaml", project)
    schedule = schedule_of(project, "", "")
    assert (schedule.cron, schedule.timezone) == (deployment["schedules"][0]["cron"], deployment["schedules"][0]["timezone"])
    assert schedule_of(project, "5 4 * * *", "UTC").cron == "5 4 * * *"


def test_a_schedule_that_can_not_be_kept(project):
    shutil.copy(REPOSITORY / "prefect.yaml", project)
    with pytest.raises(ConfigError, match="'every night'"):
        schedule_of(project, "every night", "")
    with pytest.raises(ConfigError, match="Mars/Base"):
        schedule_of(project, "", "Mars/Base")


def test_no_schedule_anywhere(project):
    (project / "prefect.yaml").write_text("deployments: []\n")
    with pytest.raises(ConfigError, match="holds no schedule"):
        schedule_of(project, "", "UTC")


def test_nothing_answers_where_nothing_listens(ports):
    assert not answers(f"http://127.0.0.1:{ports[0]}/health")
    assert "PREFECT_API_URL" not in os.environ
