"""Prefect as a team has it: a server on PostgreSQL, a work pool, many recipes in one file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.prefect_server import running_server
from tests.integration.pipeline import Workplace
from tests.integration.postgres_server import find_binaries, running_postgres
from tests.integration.prefect_client import (
    ask,
    finished_runs,
    make_pool,
    prefect,
    start_now,
    wait_for,
    wait_for_state,
    working,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

INFRA = Path(__file__).parents[2] / "infra"


@pytest.mark.slow
@pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed")
def test_a_scheduled_night_fires_on_postgresql(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    short_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    binaries = find_binaries()
    assert binaries
    home = tmp_path_factory.mktemp("prefect")
    with running_postgres(binaries) as postgres:
        monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", postgres.url)
        with running_server(home, schedules=True) as url:
            monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL")  # the server's alone
            place = Workplace(tmp_path / "deployed", {"PREFECT_API_URL": url})
            make_pool(place, "nights")
            place.run("deploy", short_recipe, "--pool", "nights")
            with working(place, "nights") as worker:
                wait_for(lambda: finished_runs(place), worker)
                found = ask(url, "flow_runs/filter")
                first = min(found, key=lambda run: run["expected_start_time"])
                ended = wait_for_state(url, first["id"], {"Completed", "Failed", "Crashed"}, 60)
            rows = postgres.ask(
                "SELECT auto_scheduled, state_name FROM flow_run WHERE state_type = 'COMPLETED'"
            )
    assert finished_runs(place)[0]["status"] == "done"
    assert first["auto_scheduled"] and ended == "Completed"
    assert "t|Completed" in rows, "scheduled by the server, and not by a person"
    assert not list(home.rglob("*.db")), "the history is in PostgreSQL"
    written = b"".join(p.read_bytes() for p in place.folder.rglob("*") if p.is_file())
    assert postgres.password.encode() not in written + (home / "server.log").read_bytes()


def deploy_all(place: Workplace, recipe: Path) -> dict[str, Any]:
    """Deploy the very file of infra/, but for its paths; return what it says, by deployment."""
    text = (INFRA / "prefect.yaml").read_text()
    assert text.count("/recipes/quickstart.yaml") == 2
    text = text.replace("/recipes/quickstart.yaml", str(recipe))
    text = text.replace("/var/lib/nightpress", str(place.folder / "state"))
    make_pool(place, "nights")
    (place.folder / "prefect.yaml").write_text(text)
    process = prefect(place, "deploy", "--all", "--prefect-file", "prefect.yaml")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return {one["name"]: one for one in yaml.safe_load(text)["deployments"]}


def test_many_recipes_are_deployed_from_one_file(
    tmp_path: Path, short_recipe: Path, prefect_server: str
) -> None:
    place = Workplace(tmp_path / "team", {"PREFECT_API_URL": prefect_server})
    said = deploy_all(place, short_recipe)
    found = {one["name"]: one for one in ask(prefect_server, "deployments/filter")}
    for name, expected in said.items():
        deployment = found[name]
        assert deployment["entrypoint"] == "flows.run_nightly.run_recipe_file"
        assert deployment["work_pool_name"] == "nights"
        assert deployment["parameters"] == expected["parameters"]
        assert deployment["job_variables"]["env"]["NIGHTPRESS_HOME"] == str(place.folder / "state")
        (schedule,) = deployment["schedules"]
        assert schedule["active"] and schedule["schedule"]["timezone"] == "Europe/Berlin"
        assert schedule["schedule"]["cron"] == expected["schedules"][0]["cron"]


@pytest.mark.slow
def test_a_worker_runs_a_recipe_of_that_file(
    tmp_path: Path, short_recipe: Path, prefect_server: str
) -> None:
    place = Workplace(tmp_path / "team", {"PREFECT_API_URL": prefect_server})
    deploy_all(place, short_recipe)
    flow_run = start_now(prefect_server, "quickstart")
    worker = prefect(place, "worker", "start", "--pool", "nights", "--run-once")
    out, _ = worker.communicate(timeout=300)
    ended = wait_for_state(prefect_server, flow_run, {"Completed", "Failed", "Crashed"}, 30)
    assert ended == "Completed", out
    (record,) = finished_runs(place)
    assert record["status"] == "done"
