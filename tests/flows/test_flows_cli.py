"""The command line: what it says, and the exit code that says which kind of trouble it was."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from flows.cli import main


@pytest.fixture
def prefline(monkeypatch, capsys):
    """prefline("run", "--set", ...) -> exit code, what it printed, what it said of errors."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prefline", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return end.value.code, printed.out, printed.err

    return call


def heavy_of(*modules):
    """Which of the packages that are slow to import these modules bring along."""
    heavy = {"torch", "prefect", "mlflow", "transformers", "pandas", "dvc"}
    program = f"import sys, {', '.join(modules)}; print(*sorted({heavy} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("modules", [["flows.cli"], ["flows.record", "flows.summary"]], ids=["--help", "status"])
def test_help_and_status_need_none_of_the_heavy_packages(modules):
    assert heavy_of(*modules) == []


def test_help_lists_the_commands(prefline):
    code, out, _ = prefline("--help")
    assert code == 0
    assert all(command in out for command in ("run", "compare", "stage", "status", "ui", "serve", "ask", "champion", "data"))


def test_a_misspelt_key_is_a_usage_error(project, prefline):
    code, _, error = prefline("run", "--set", "policy.rouds=3")
    assert code == 2
    assert error == "prefline: --set policy.rouds=3: there is no key policy.rouds.\n  Did you mean policy.rounds?\n"


def test_an_unknown_method_is_a_usage_error(project, prefline):
    code, _, error = prefline("compare", "dpo", "pop")
    assert code == 2
    assert error.startswith("prefline: method pop: policy.method is 'pop': input should be 'ppo', 'rloo',")
    assert not (project / "runs").exists()


def test_help_tells_the_two_comparisons_apart(prefline):
    assert "For two runs that are over: prefline compare-runs." in " ".join(prefline("compare", "--help")[1].split())
    assert "Trains nothing; see compare." in " ".join(prefline("compare-runs", "--help")[1].split())


def test_an_unknown_option_is_a_usage_error(project, prefline):
    assert prefline("run", "--nope")[0] == 2


def test_outside_a_project(tmp_path, monkeypatch, prefline):
    monkeypatch.chdir(tmp_path)
    code, _, error = prefline("status")
    assert code == 2
    assert "no params.yaml" in error


def test_without_git_nothing_starts(project, prefline):
    shutil.rmtree(project / ".git")
    code, _, error = prefline("run")
    assert code == 5
    assert "git init && git add -A && git commit" in error
    assert not (project / ".prefect").exists()


def test_a_folder_of_files_as_store_is_refused(project, prefline, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    code, _, error = prefline("champion")
    assert code == 5
    assert "no longer writes" in error


def test_no_champion_yet(project, prefline):
    assert prefline("champion")[2].startswith("prefline: prefline-policy has no champion. No version is registered yet.")
    code, _, error = prefline("ask", "How warm is the red lamp?")
    assert code == 1
    assert error.startswith("prefline: prefline-policy has no champion yet.")


def test_no_run_yet(project, prefline):
    code, _, error = prefline("status")
    assert code == 1
    assert "no run in" in error


def test_ctrl_c_is_one_line_and_130(project, prefline, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.cli.load_config", interrupt)
    code, _, error = prefline("run")
    assert code == 130
    assert error.startswith("prefline: interrupted.")
    assert error.count("\n") == 1


def test_a_prefect_server_that_is_not_there_is_named_at_once(project):
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    program = "from flows.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "run"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("prefline: No Prefect server answers at http://127.0.0.1:1/api.")
    assert not (project / "runs").exists()
