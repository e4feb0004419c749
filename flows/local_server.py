"""A Prefect API of one run's own, for when no server is named: quick to start, and gone when the run is.

As Prefect's own temporary server, with two differences. It starts while this process is still importing torch, which
hides its five seconds; and it leads a session of its own and ends when its standard input does, so that neither Ctrl-C
(which the terminal sends to all) takes it away before the flow has reported, nor a killed run leaves it behind.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import EnvironmentRefused

START_SECONDS = 120.0


class LocalServer:
    """The child process. url: of its API. ready() waits until it answers; stop() ends it."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._log = home / "local-server.log"
        self._tables = home / f"tables-of-{importlib.metadata.version('prefect')}"
        self._first_start = FileLock(home / "local-server.lock")
        if not self._tables.exists():
            self._be_first()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.local_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0"},
            )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self._refuse()
        self.url = f"http://127.0.0.1:{int(port)}/api"

    def ready(self) -> None:
        """Wait until the API answers. Raises EnvironmentRefused if it ends first, or never does."""
        give_up = time.monotonic() + START_SECONDS
        while not answers(f"{self.url}/health"):
            if self._process.poll() is not None or time.monotonic() > give_up:
                self._refuse()
            time.sleep(0.05)
        self._tables.touch()
        self._first_start.release()

    def stop(self) -> None:
        self._first_start.release()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _be_first(self) -> None:
        """Hold a lock until the server answers: two that make the tables of one database at once break each other's."""
        try:
            self._first_start.acquire(timeout=START_SECONDS)
        except Timeout:
            raise EnvironmentRefused(
                f"{self._first_start.lock_file} is held: another run's Prefect server does not come up.", "End that run and try again."
            ) from None

    def _refuse(self) -> None:
        self.stop()
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        raise EnvironmentRefused(
            f"Prefect's local server did not start: {lines[-1] if lines else 'no reason given'}",
            f"All it said is in {self._log}. Is the disk full, or the database beside it damaged?",
        )


@contextmanager
def local_server(home: Path) -> Iterator[LocalServer]:
    server = LocalServer(home)
    try:
        yield server
    finally:
        server.stop()


def answers(url: str, timeout: float = 5.0) -> bool:
    """Does an HTTP server answer there?"""
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # it wants a key, say
    except (OSError, ValueError):
        return False
    return True


def _serve() -> None:
    """The child: say the port, then serve until standard input ends."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)

    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="error", lifespan="on"))

    def follow_parent() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=follow_parent, daemon=True).start()
    server.run(sockets=[listening])


if __name__ == "__main__":
    _serve()
