"""A night that is cancelled in Prefect's UI: its workers are freed, and the next one goes on."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.pipeline import Workplace
from tests.integration.prefect_client import (
    ask,
    cancel,
    make_pool,
    start_now,
    stopped_at_the_end,
    wait_for_state,
    working,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

FREE_WITHIN_S = 30
BEGINS_WITHIN_S = 420


@pytest.fixture
def write_recipe(recipe_text: str, tmp_path: Path) -> Callable[[str, str], Path]:
    """Make a recipe whose one step, a `sweep` or a `training`, takes some dozen seconds.

    Its name is its deployment's, so tests that share a server each have their own.
    """

    def write(name: str, work: str) -> Path:
        raw = yaml.safe_load(recipe_text)
        prune, distill = raw["steps"]
        prune["prune"] |= {"num_submodels": 100}
        distill["distill"] |= {"num_tokens": 60_000}
        raw |= {"name": name, "comparisons": [], "exports": raw["exports"][1:]}
        raw["steps"] = [prune if work == "sweep" else distill]
        raw["corpus"]["sources"] = raw["corpus"]["sources"][1:]
        raw["schedule"] = {"cron": "0 2 * * *"}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw))
        return path

    return write


STORED = {"sweep": "stages/prune/*/units/*", "training": "stages/distill/*/checkpoints/*"}
"""What shows that the work has begun; the next night goes on from it."""


def processes_of(flow_run: str) -> list[psutil.Process]:
    """All that a night has started, whoever its parent is by now: they inherit its environment."""
    marker = f"PREFECT__FLOW_RUN_ID={flow_run}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            if marker in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def workers_of(flow_run: str) -> list[psutil.Process]:
    """All of them but the night's own process, which writes its record after they are freed."""
    return [p for p in processes_of(flow_run) if "prefect.engine" not in command_of(p)]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def served(place: Workplace, recipe: Path) -> Iterator[str]:
    """Serve a recipe; yield its deployment's name."""
    with stopped_at_the_end(place.start("serve", recipe)):
        yield recipe.stem


@contextmanager
def deployed(place: Workplace, recipe: Path) -> Iterator[str]:
    """Deploy a recipe and run a worker; yield its deployment's name."""
    make_pool(place, "nights")
    place.run("deploy", recipe, "--pool", "nights")
    with working(place, "nights"):
        yield recipe.stem


def wait_for(reached: Callable[[], object], within_s: float) -> float:
    """Return the seconds until something is so."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < within_s, "never got there"
        time.sleep(0.1)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("started", "work"),
    [
        pytest.param(deployed, "training", id="deploy-training"),
        pytest.param(deployed, "sweep", id="deploy-sweep"),
        pytest.param(served, "training", id="serve-training"),
        pytest.param(served, "sweep", id="serve-sweep"),
    ],
)
def test_who_cancels_a_night_has_its_workers_back(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    write_recipe: Callable[[str, str], Path],
    prefect_server: str,
    started: Callable[[Workplace, Path], AbstractContextManager[str]],
    work: str,
) -> None:
    name = request.node.callspec.id
    recipe = write_recipe(name, work)
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    place = Workplace(tmp_path / "cancelled", {"PREFECT_API_URL": prefect_server} | quick)
    with started(place, recipe) as deployment:
        wait_for(lambda: find_deployment(prefect_server, deployment), BEGINS_WITHIN_S)
        flow_run = start_now(prefect_server, deployment)
        wait_for(lambda: any(place.store.glob(STORED[work])), BEGINS_WITHIN_S)
        assert len(workers_of(flow_run)) > 3, "Ray's own processes, and the workers"
        cancel(prefect_server, flow_run)
        freed_s = wait_for(lambda: not workers_of(flow_run), FREE_WITHIN_S)
        ended_s = freed_s + wait_for(lambda: not processes_of(flow_run), FREE_WITHIN_S)
        print(f"workers freed in {freed_s:.1f} s, night ended in {ended_s:.1f} s")
        final = wait_for_state(prefect_server, flow_run, {"Cancelled", "Crashed", "Failed"}, 120)
    assert final == "Cancelled"

    (run,) = (place.store / "runs" / name).iterdir()
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["error"]) == ("cancelled", "cancelled before its end")
    assert (run / "report.html").stat().st_size
    (lease,) = (place.store / "leases" / name).iterdir()
    assert json.loads(lease.read_text())["released"]
    shown = ask(prefect_server, "artifacts/filter", by_key(f"{name}-night"))
    assert "cancelled in" in next(a["data"] for a in shown if a["flow_run_id"] == flow_run)

    files = [path for path in place.store.glob("stages/*/*/units/**/*") if path.is_file()]
    stored = {path: path.stat().st_mtime_ns for path in files}
    again = place.run_json("run", recipe)
    assert again["status"] == "done"
    assert stored == {path: path.stat().st_mtime_ns for path in stored}
    outcomes = {stage["title"]: stage["outcome"] for stage in again["stages"]}
    assert outcomes["evaluate teacher"] == outcomes["corpus"] == "cached"


def by_key(key: str) -> dict[str, Any]:
    return {"artifacts": {"key": {"any_": [key]}}}


def find_deployment(api: str, name: str) -> bool:
    return bool(ask(api, "deployments/filter", {"deployments": {"name": {"any_": [name]}}}))
