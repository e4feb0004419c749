"""A project in a git repository with a fresh MLflow store, stages that train nothing, and one Prefect server a session."""

import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, git, mlflow_tables, monkeypatch):
    """The root of a project that is committed and clean; the current folder."""
    root = tmp_path / "project"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(mlflow_tables, root / "mlflow" / "mlflow.db")
    shutil.copy(REPOSITORY / "mlflow" / "promotion.yaml", root / "mlflow")
    (root / "params.yaml").write_text("seed: 0\n")
    (root / ".gitignore").write_text("/runs/\n/.prefect/\n/mlflow/*.db*\n/mlflow/artifacts/\n")
    git(root, "init", "--quiet")
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "Start")
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def prefect_server():
    """Prefect's own test server, once."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


class Line:
    """Three stages in a row that write a few bytes. calls: what really ran. fail: raised by "two"."""

    def __init__(self):
        from tasks.stage import stage

        self.calls = []
        self.fail = None

        @stage("one", reads=("seed",), package="data")
        def one(config, *, run):
            self.calls.append("one")
            (run.out / "seed.txt").write_text(str(config.seed))
            run.report(1, 2, loss=0.5)
            run.report(2, 2, loss=0.25)
            return {"loss": 0.25}

        @stage("two", reads=(), package="data")
        def two(config, *, one, run):
            self.calls.append("two")
            if self.fail:
                raise self.fail
            (run.out / "two.md").write_text(f"# After {(one.path / 'seed.txt').read_text()}")
            return {"rows": 1234.0}

        @stage("three", reads=(), package="data", cached=False)
        def three(config, *, two, run):
            self.calls.append("three")
            (run.out / "three.txt").write_text("3")
            return {}

        self.stages = (one, two, three)

    def ran(self):
        """What ran since the last time."""
        calls, self.calls[:] = list(self.calls), []
        return calls


@pytest.fixture
def line():
    return Line()
