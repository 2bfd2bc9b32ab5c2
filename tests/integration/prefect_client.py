"""Prefect as its users meet it: the API that the UI speaks, the `prefect` command, nights."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.integration.pipeline import Workplace, check_no_orphans

PREFECT = Path(sys.executable).with_name("prefect")
NUM_TRIES = 5

FIRES_WITHIN_S = 480
"""A minute until the cron's next one, the start of a server, and the night, on a busy machine."""
ENDS_WITHIN_S = 120
"""Also a worker of Prefect, which lets the night that runs come to its end."""


def prefect(place: Workplace, *arguments: str) -> subprocess.Popen[str]:
    """Start the `prefect` command in a workplace."""
    return subprocess.Popen(
        [str(PREFECT), "--no-prompt", *arguments],
        env=place.environment,
        cwd=place.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_pool(place: Workplace, name: str) -> None:
    """Make a work pool of type process, where there is none of that name."""
    place.folder.mkdir(parents=True, exist_ok=True)
    process = prefect(place, "work-pool", "create", "--overwrite", "--type", "process", name)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out


def ask(api: str, what: str, document: dict[str, Any] | None = None) -> Any:
    """Post a document to a route of the API, as the UI does."""
    request = urllib.request.Request(
        f"{api}/{what}",
        data=json.dumps(document or {}).encode(),
        headers={"Content-Type": "application/json"},
    )
    for left in reversed(range(NUM_TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or not left:  # SQLite has one writer, and others wait too long
                raise
            time.sleep(1)
    raise AssertionError("at least one try")


def start_now(api: str, deployment_name: str) -> str:
    """Do what the UI's `Quick run` does; return the flow run's id."""
    (deployment,) = ask(
        api, "deployments/filter", {"deployments": {"name": {"any_": [deployment_name]}}}
    )
    run = ask(
        api, f"deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}}
    )
    return str(run["id"])


def cancel(api: str, flow_run: str) -> None:
    """Do what the UI's `Cancel` does."""
    state = {"type": "CANCELLING", "name": "Cancelling"}
    answer = ask(api, f"flow_runs/{flow_run}/set_state", {"state": state})
    assert answer["status"] == "ACCEPT", answer


def wait_for_state(api: str, flow_run: str, names: set[str], timeout_s: float) -> str:
    """Return the name of the flow run's state as soon as it is one of these, or the last one."""
    end = time.monotonic() + timeout_s
    while True:
        (found,) = ask(api, "flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        if found["state_name"] in names or time.monotonic() > end:
            return str(found["state_name"])
        time.sleep(0.5)


def finished_runs(place: Workplace) -> list[dict[str, Any]]:
    records = sorted((place.store / "runs").glob("*/*/run.json"))
    return [json.loads(path.read_text()) for path in records]


def wait_for(reached: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + FIRES_WITHIN_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "never fired"
        time.sleep(0.5)


@contextmanager
def stopped_at_the_end(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Ask a process to stop, see that it takes all of its own with it; yield its exit code."""
    codes: list[int] = []
    try:
        yield codes
    finally:
        alive = process.poll() is None
        family = psutil.Process(process.pid).children(recursive=True) if alive else []
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=ENDS_WITHIN_S)
        finally:
            process.kill()
        codes.append(process.returncode)
        check_no_orphans(family)


@contextmanager
def working(place: Workplace, pool: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker of Prefect; see that no night of its is left.

    Prefect's own worker (3.8.8) often has nothing left to do and does not end when it is asked to;
    then it is killed.
    """
    worker = prefect(place, "worker", "start", "--pool", pool)
    try:
        yield worker
    finally:
        alive = worker.poll() is None
        family = psutil.Process(worker.pid).children(recursive=True) if alive else []
        worker.terminate()
        try:
            worker.communicate(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()
        check_no_orphans(family)
