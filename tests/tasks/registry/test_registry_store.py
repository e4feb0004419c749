"""The store: opened once and by many, refused with a reason."""

import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from tasks.errors import EnvironmentRefused
from tasks.registry.store import open_store, tracking_uri, without_password

OPEN = """
import sys
from pathlib import Path
from tasks.registry.store import open_store
print(open_store(Path(sys.argv[1]), "x").experiment)
"""


def open_in_processes(root, count):
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    outcomes = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outcomes
    return [out.strip() for out, _ in outcomes]


def test_two_first_starts_at_once(tmp_path):
    found = open_in_processes(tmp_path, 2)
    assert found[0] == found[1]


def test_four_make_the_experiment_at_once_and_get_the_same(project):
    assert len(set(open_in_processes(project, 4))) == 1
    store = open_store(project, "x")
    experiments = store.client.search_experiments(filter_string="name = 'x'")
    assert len(experiments) == 1
    assert experiments[0].tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiments[0].artifact_location == (project / "mlflow" / "artifacts").as_uri()


def test_a_folder_of_files_is_refused(project, monkeypatch):
    for uri in ("./mlruns", "file:///somewhere/mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(EnvironmentRefused, match="no longer writes"):
            tracking_uri(project)


def test_the_environment_names_another_store(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    assert open_store(project, "x").uri.endswith("other.db")
    assert (tmp_path / "other.db").exists()


def test_a_locked_store_is_refused_in_seconds(project, monkeypatch):
    monkeypatch.setattr("tasks.registry.store.PATIENCE", 0.3)
    holder = sqlite3.connect(project / "mlflow" / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    begun = time.monotonic()
    try:
        with pytest.raises(EnvironmentRefused, match="database is locked"):
            open_store(project, "x")
    finally:
        holder.close()
    assert time.monotonic() - begun < 5


def test_a_file_that_is_no_database(project):
    (project / "mlflow" / "mlflow.db").write_text("this is not a database, but a text that is long enough to be looked at\n" * 20)
    with pytest.raises(EnvironmentRefused, match="not a database"):
        open_store(project, "x")


def test_a_server_that_is_not_there_is_refused_in_seconds(project, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    begun = time.monotonic()
    with pytest.raises(EnvironmentRefused, match="does not answer"):
        open_store(project, "x")
    assert time.monotonic() - begun < 10


def test_a_deleted_experiment_is_named_with_the_way_back(project):
    store = open_store(project, "x")
    store.client.delete_experiment(store.experiment)
    with pytest.raises(EnvironmentRefused, match="mlflow experiments restore"):
        open_store(project, "x")


def test_passwords_are_not_shown():
    assert without_password("postgresql://me:secret@db/x") == "postgresql://me:...@db/x"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
