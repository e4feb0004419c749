"""A run that is killed between its stages, in a process of its own with a Prefect server of its own, and goes on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from flows.record import read_record
from tasks.registry.store import open_store

SCRIPT = """
import sys, time
from pathlib import Path
from flows.prefect_side import prefect_api
from tasks.config import PipelineConfig

root, hang = Path(sys.argv[1]), sys.argv[2] == "hang"
with prefect_api(root) as api:
    from prefect import flow
    from prefect.runtime import flow_run
    from flows.prefect_side import as_task
    from flows.record import new_run_id
    from flows.run import run_line
    from tasks.stage import stage

    @stage("one", reads=("seed",), package="data")
    def one(config, *, run):
        print("ran one", flush=True)
        (run.out / "one.txt").write_text("1")
        return {"loss": 1.0}

    @stage("two", reads=(), package="data")
    def two(config, *, one, run):
        print("ran two", flush=True)
        while hang:
            time.sleep(0.1)
        (run.out / "two.txt").write_text("2")
        return {}

    @flow(name="kill", flow_run_name=new_run_id)
    def kill(config: PipelineConfig):
        return run_line((one, two), root, config, run=flow_run.name, perform=as_task)

    with api.ready():
        kill(PipelineConfig())
print("done", flush=True)
"""


@pytest.fixture
def start(project):
    """start("hang" or "go") -> the process, in a session of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_HOME"}
    processes = []

    def popen(how):
        command = [sys.executable, "-c", SCRIPT, str(project), how]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        processes.append(process)
        return process

    yield popen
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(process, line):
    for text in process.stdout:
        if text.strip() == line:
            return
    raise AssertionError(f"ended without {line!r}: {process.stderr.read()}")


def servers_of(project):
    """Processes whose environment names the project's Prefect home."""
    home = f"PREFECT_HOME={project}/.prefect".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and home in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_what_was_interrupted_and_then_killed_goes_on_where_it_was(project, start):
    """One test, because each start of a fresh Prefect database takes seconds."""
    process = start("hang")
    wait_for(process, "ran two")
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to all that it started, too
    _, error = process.communicate(timeout=180)
    assert "KeyboardInterrupt" in error
    interrupted = read_record(project)
    assert interrupted.state == "interrupted"
    assert [stage.state for stage in interrupted.stages] == ["done", "interrupted"]
    with sqlite3.connect(project / ".prefect" / "prefect.db") as database:
        assert database.execute("select state_name from flow_run").fetchall() == [("Crashed",)]

    process = start("hang")
    wait_for(process, "ran two")
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = read_record(project)
    assert killed.state == "killed"
    assert [stage.state for stage in killed.stages] == ["skipped", "running"]
    give_up = time.monotonic() + 30
    while servers_of(project) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert servers_of(project) == []  # the run's own server has followed it

    process = start("go")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "ran one" not in out
    assert "ran two" in out
    client = open_store(project, "prefline").client
    assert client.get_run(interrupted.mlflow_run).info.status == "KILLED"
    assert client.get_run(killed.mlflow_run).info.status == "KILLED"
    assert json.loads((project / "runs" / killed.run / "run.json").read_text())["state"] == "killed"
