"""Nights by themselves, with the real command, Prefect's real scheduler, and real time."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect import State
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

from flows.run_nightly import run_nightly
from infra.lease import take_lease
from infra.prefect_server import running_server
from infra.storage import FileStore
from tasks.recipe_file import load_recipe
from tests.integration.pipeline import Workplace, check_no_orphans
from tests.integration.prefect_client import (
    FIRES_WITHIN_S,
    finished_runs,
    make_pool,
    stopped_at_the_end,
    wait_for,
    working,
)

pytestmark = pytest.mark.integration

NIGHT = timedelta(seconds=240)
"""To the deadline, which is a full minute: in three of them a busy machine begins to train."""


@pytest.fixture
def endless_recipe(recipe_text: str, tmp_path: Path) -> Path:
    """A training that would take an hour, every minute."""
    raw = yaml.safe_load(recipe_text)
    raw |= {"steps": raw["steps"][1:], "comparisons": [], "exports": raw["exports"][1:]}
    raw["corpus"]["sources"] = raw["corpus"]["sources"][1:]
    raw["steps"][0]["distill"]["num_tokens"] = 10_000_000
    raw["schedule"] = {"cron": "* * * * *"}
    path = tmp_path / "endless.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def is_training(place: Workplace) -> bool:
    """Whether a first checkpoint is there."""
    return any((place.store / "stages" / "distill").glob("*/checkpoints/*"))


def test_serve_runs_a_night_when_its_time_has_come(tmp_path: Path, short_recipe: Path) -> None:
    place = Workplace(tmp_path / "served")
    process = place.start("serve", short_recipe)
    with stopped_at_the_end(process) as codes:
        wait_for(lambda: finished_runs(place), process)
    assert codes == [128 + signal.SIGTERM]
    (first, *_) = finished_runs(place)
    assert first["status"] == "done" and first["exports"][0]["outcome"] == "published"
    started = datetime.fromisoformat(first["started"])
    assert datetime.now(UTC) - started < timedelta(seconds=FIRES_WITHIN_S)


@pytest.mark.slow
def test_who_stops_serve_stops_the_night_that_runs(tmp_path: Path, endless_recipe: Path) -> None:
    place = Workplace(tmp_path / "served")
    process = place.start("serve", endless_recipe)
    with stopped_at_the_end(process) as codes:
        wait_for(lambda: is_training(place), process)
    assert codes == [128 + signal.SIGTERM]
    (key,) = (place.store / "leases" / "tiny").iterdir()
    assert json.loads(key.read_text())["released"]
    assert [run["status"] for run in finished_runs(place)] == ["cancelled"]


def test_a_night_ends_at_its_deadline_and_frees_its_workers(
    tmp_path: Path, endless_recipe: Path, prefect_server: str
) -> None:
    place = Workplace(tmp_path / "deadline", {"PREFECT_API_URL": prefect_server})
    deadline = (datetime.now(UTC) + NIGHT).replace(second=0, microsecond=0)

    process = place.start("run", endless_recipe, "--deadline", f"{deadline:%H:%M}", "--json")
    wait_for(lambda: is_training(place), process)
    place.run("run", endless_recipe, expect=5)  # while the first one is at work
    family = psutil.Process(process.pid).children(recursive=True)
    out, err = process.communicate(timeout=NIGHT.total_seconds() + 60)
    assert process.returncode == 4, err
    late = datetime.now(UTC) - deadline
    assert timedelta(0) <= late < timedelta(seconds=120), "the training was not waited for"
    check_no_orphans(family)

    record = json.loads(out)
    assert record["status"] == "deadline" and record["exports"] == []
    assert [stage["title"] for stage in record["stages"]] == [
        "evaluate teacher",
        "source 1 local_text",
        "corpus",
    ]
    assert finished_runs(place) == [record]
    assert "the deadline" in err and "to go on from there: nightpress run" in err
    stages = {s["title"]: s["outcome"] for s in place.run_json("plan", endless_recipe)["stages"]}
    assert stages["corpus"] == "cached" and stages["1 distill"] == "to compute"


def test_a_night_that_is_skipped_says_so_in_prefect(
    tmp_path: Path, short_recipe: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTPRESS_HOME", str(tmp_path / "state"))
    recipe = load_recipe(short_recipe)
    lease = take_lease(FileStore(f"file://{tmp_path}/state/store"), "leases/tiny", "other")
    own = {PREFECT_API_URL: prefect_server, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(own):
        state: State[Any] = run_nightly(recipe, return_state=True)  # type: ignore[call-overload]
    lease.release()
    assert state.is_completed() and state.name == "Skipped"
    assert state.message is not None and "another night is running: other" in state.message


@pytest.mark.slow
def test_a_worker_runs_the_nights_of_a_deployment(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, short_recipe: Path
) -> None:
    with running_server(tmp_path_factory.mktemp("scheduler"), schedules=True) as url:
        place = Workplace(tmp_path / "deployed", {"PREFECT_API_URL": url})
        place.run("deploy", short_recipe, "--pool", "absent", expect=2)
        make_pool(place, "nights")
        told = place.run_json("deploy", short_recipe, "--pool", "nights")
        assert told["deployment"] == "run nightly/tiny"
        with working(place, "nights") as worker:
            wait_for(lambda: finished_runs(place), worker)
    assert finished_runs(place)[0]["status"] == "done"
