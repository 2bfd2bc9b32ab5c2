"""What a night cost: worker hours, their price, energy measured or estimated, and who says so."""

from pathlib import Path

import pytest

from flows.costs import cost_of, cost_of_night
from tasks.recipe_file import load_recipe
from tasks.run_records import Effort, Fanout, StageResult

EFFORT = Effort(
    num_workers=4,
    fanouts=[
        Fanout(group="look", num_units=1, num_workers=1, worker_seconds=100),
        Fanout(group="sweep", num_units=8, num_workers=4, worker_seconds=500),
    ],
    devices=["Xeon"],
)


def result(title: str, outcome: str, recipe_file: Path, effort: Effort = EFFORT) -> StageResult:
    recipe = load_recipe(recipe_file, ["cost.worker_hour=2.5"])
    return StageResult.model_validate(
        {
            "title": title,
            "stage": "prune",
            "key": "f" * 64,
            "outcome": outcome,
            "seconds": 360.0,
            "nodes": ["node"],
            "effort": effort,
            "cost": cost_of(recipe, 360.0, effort),
        }
    )


def test_all_workers_are_paid_for_and_those_at_work_draw_power(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file, ["cost={worker_hour: 2.5, currency: USD, watts_per_worker: 60}"]
    )
    cost = cost_of(recipe, 360.0, EFFORT)
    assert cost.worker_hours == pytest.approx(0.4)  # 0.1 h of four
    assert cost.price == pytest.approx(1.0) and cost.currency == "USD"
    assert cost.energy_kwh == pytest.approx(600 * 60 / 3.6e6)
    assert cost.energy_protocol == "estimated: 60 W for a worker at work, the recipe's"


def test_what_was_measured_is_not_estimated(recipe_file: Path) -> None:
    effort = EFFORT.model_copy(update={"joules": 7200.0, "meters": ["NVML", "RAPL"]})
    cost = cost_of(load_recipe(recipe_file), 360.0, effort)
    assert cost.energy_kwh == pytest.approx(0.002)
    assert cost.energy_protocol == "measured at work: NVML, RAPL"
    assert cost.price is None


def test_an_assumption_says_that_it_is_one(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["cluster.threads_per_worker=2", "cluster.gpus_per_worker=1"])
    cost = cost_of(recipe, 360.0, Effort(num_workers=1, fanouts=[], devices=["Xeon"]))
    assert cost.energy_kwh == pytest.approx(360 * (2 * 12 + 700) / 3.6e6)
    assert "assumed" in cost.energy_protocol


def test_a_night_pays_for_what_it_computed(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["cost.worker_hour=2.5"])
    metered = EFFORT.model_copy(update={"joules": 7200.0, "meters": ["RAPL"]})
    night = cost_of_night(
        recipe,
        [
            result("stored", "cached", recipe_file),
            result("first", "computed", recipe_file),
            result("second", "computed", recipe_file, metered),
        ],
    )
    assert night.worker_hours == pytest.approx(0.8) and night.price == pytest.approx(2.0)
    assert night.energy_kwh == pytest.approx(0.002 + 600 * 12 / 3.6e6)
    assert "estimated" in night.energy_protocol and "measured" in night.energy_protocol
    nothing = cost_of_night(recipe, [result("stored", "cached", recipe_file)])
    assert (nothing.worker_hours, nothing.price, nothing.energy_kwh) == (0, 0, 0)


@pytest.mark.parametrize("wrong", ["worker_hour=-1", "currency=euro", "watts_per_worker=0"])
def test_a_cost_that_is_none_is_refused(recipe_file: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"cost\."):
        load_recipe(recipe_file, [f"cost.{wrong}"])
