"""Prefect's API for one run, where no server is configured: it lives and dies with this process.

Prefect can start such a server by itself, but then a killed run leaves it behind.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 300
"""A first start makes the database; a busy machine takes its time."""
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@contextmanager
def prefect_api(home: Path, schedules: bool = False) -> Iterator[Callable[[], None]]:
    """Give this process an API of its own, unless PREFECT_API_URL names a server.

    Yields at once what waits until it can be asked: there are seconds of other work meanwhile.

    Args:
        home: As for `starting_server`.
        schedules: As for `starting_server`.
    """
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOGGING_TO_API_ENABLED,
        get_current_settings,
        temporary_settings,
    )

    if get_current_settings().api.url:
        yield lambda: None
        return
    with starting_server(home, schedules) as (url, wait_until_up):
        # Nobody looks at the logs of a server that is gone after the run.
        own = {PREFECT_API_URL: url, PREFECT_LOGGING_TO_API_ENABLED: False}
        with temporary_settings(own):
            yield wait_until_up


@contextmanager
def running_server(home: Path, schedules: bool = False) -> Iterator[str]:
    """Run Prefect's API as `starting_server` does, and yield its URL when it is up.

    Raises:
        RuntimeError: it does not start.
    """
    with starting_server(home, schedules) as (url, wait_until_up):
        wait_until_up()
        yield url


@contextmanager
def starting_server(
    home: Path, schedules: bool = False
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Start Prefect's API on a free port of 127.0.0.1; yield its URL, and what waits until it is up
    (RuntimeError: it does not start).

    Its database and its log lie in `home`. To be entered from a thread that outlives the server,
    which the kernel ends with the thread that started it.

    Args:
        home: An existing folder.
        schedules: Start what is scheduled, and find what is late; a single run needs neither.
    """
    port = free_port()
    server = start_server(home, port, schedules)
    is_up = False

    def wait() -> None:
        nonlocal is_up
        wait_until_up(f"http://127.0.0.1:{port}/api/health", server, home / "server.log")
        is_up = True

    try:
        yield f"http://127.0.0.1:{port}/api", wait
    finally:
        # One that still starts would do that first; its database bears to be cut off.
        server.send_signal(signal.SIGTERM if is_up else signal.SIGKILL)
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(home: Path, port: int, schedules: bool) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_UI_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    if not schedules:
        environment |= {
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
        }
    application = "prefect.server.api.server:create_app"
    command = [sys.executable, "-m", "uvicorn", "--factory", application, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "error", "--lifespan", "on"]
    with (home / "server.log").open("wb") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"Prefect's temporary server did not start; see {log}")
