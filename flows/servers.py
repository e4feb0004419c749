"""The two servers for people to look at runs: MLflow's and Prefect's, on loopback, over the project's own stores."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.local_server import answers
from flows.prefect_side import use_project_home
from tasks.errors import EnvironmentRefused
from tasks.registry.store import TRAINING_VIEW, tracking_uri, without_password

HOST = "127.0.0.1"
START_SECONDS = 120.0
MLFLOW_PAGE = f"/#/experiments{TRAINING_VIEW}"


@dataclass(frozen=True)
class Server:
    """A server. address: where it answers. page: where people begin."""

    name: str
    address: str
    page: str
    process: subprocess.Popen[bytes]


@contextmanager
def both_servers(root: Path, mlflow_port: int, prefect_port: int) -> Iterator[tuple[Server, Server]]:
    """MLflow's and Prefect's servers, answering; both end with the block."""
    uri = tracking_uri(root)
    if uri.startswith("http"):
        raise EnvironmentRefused(f"MLFLOW_TRACKING_URI names a server: {without_password(uri)}.", "Its pages are there already.")
    with ExitStack() as stack:
        starting = [
            stack.enter_context(_started(root, "MLflow", mlflow_port, mlflow_command(uri, mlflow_port), "health", MLFLOW_PAGE)),
            stack.enter_context(prefect_server_started(root, prefect_port)),
        ]
        mlflow, prefect = (_awaited(root, *one) for one in starting)
        yield mlflow, prefect


@contextmanager
def prefect_server(root: Path, port: int) -> Iterator[Server]:
    """Prefect's server alone: what a schedule needs."""
    with prefect_server_started(root, port) as one:
        yield _awaited(root, *one)


@contextmanager
def prefect_server_started(root: Path, port: int) -> Iterator[tuple[Server, str]]:
    use_project_home(root)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with _started(root, "Prefect", port, command, "api/health") as one:
        yield one


def mlflow_command(uri: str, port: int) -> list[str]:
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST, "--port", str(port), "--workers", "1"]


@contextmanager
def _started(root: Path, name: str, port: int, command: list[str], health: str, page: str = "") -> Iterator[tuple[Server, str]]:
    """The server's process in a session of its own, so that Ctrl-C ends it once and in order; its words go to a file."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise EnvironmentRefused(
                f"Port {port}, for {name}, is taken.", f"Is prefline ui running already? If not: --{name.lower()}-port N"
            ) from None
    log = _log_of(root, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        # Prefect's page asks the port that the server's settings name, not the one it came from.
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that nothing here needs
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    }
    environment = {**os.environ, **settings}
    environment.pop("PREFECT_API_URL", None)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        address = f"http://{HOST}:{port}"
        yield Server(name, address, f"{address}{page}", process), health
    finally:
        _end(process)


def _awaited(root: Path, server: Server, health: str) -> Server:
    give_up = time.monotonic() + START_SECONDS
    while not answers(f"{server.address}/{health}"):
        if server.process.poll() is not None or time.monotonic() > give_up:
            raise EnvironmentRefused(f"The {server.name} server did not start.", f"What it said is in {_log_of(root, server.name)}")
        time.sleep(0.1)
    return server


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server and all that it started, SIGKILL to what is left after ten seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
        break
    process.wait()


def _log_of(root: Path, name: str) -> Path:
    return root / "runs" / f"{name.lower()}-server.log"
