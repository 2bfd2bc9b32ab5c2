"""What a stage's workers measured: units, ranks, and what an attempt before had left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.energy import Reading
from tasks.effort import Tally
from tasks.stage_space import StageSpace
from tests.unit.stage_space import make_space


@pytest.fixture
def space(tmp_path: Path) -> StageSpace:
    return make_space(tmp_path / "store", tmp_path / "scratch")


def nothing() -> None:
    """Be no state."""


def letter(state: None, unit: str) -> bytes:
    return unit.encode()


def test_units_are_counted_and_timed_where_they_are_computed(space: StageSpace) -> None:
    space.compute_units(letter, list("abc"), nothing, "letters")
    space.compute_units(letter, ["d"], nothing, "last", num_workers=1)
    effort = space.tally.effort(4, Reading(seconds=9.0, devices=["driver"]))
    letters, last = effort.fanouts
    assert (letters.group, letters.num_units, letters.num_stored) == ("letters", 3, 0)
    assert (last.num_units, last.num_workers) == (1, 1)
    assert effort.num_workers == 4 and "driver" not in effort.devices and effort.devices


def test_what_lay_in_the_store_was_not_worked_for(space: StageSpace) -> None:
    space.compute_units(letter, list("ab"), nothing, "letters")
    space.tally = Tally()
    space.compute_units(letter, list("abc"), nothing, "letters")
    (found,) = space.tally.effort(1, Reading()).fanouts
    assert (found.num_units, found.num_stored) == (1, 2)


def test_rank_0_stands_for_its_group(space: StageSpace) -> None:
    class Group:
        def run_group(self, fn: Callable[[Any], Any], config: Any, num_workers: int) -> Any:
            return fn(config)

    space.executor = Group()  # type: ignore[assignment]
    assert space.run_group(lambda config: config["answer"], {"answer": 42}, 3) == 42
    (found,) = space.tally.effort(3, Reading()).fanouts
    assert found.in_step and (found.num_units, found.num_workers) == (3, 3)


def test_the_driver_counts_where_it_was_alone() -> None:
    alone = Reading(seconds=5.0, joules=60.0, meters=["RAPL"], devices=["Xeon"])
    effort = Tally().effort(2, alone)
    assert (effort.fanouts, effort.devices, effort.joules) == ([], ["Xeon"], 60.0)


@pytest.mark.parametrize(("second", "expected"), [(3.0, 8.0), (None, None)])
def test_joules_of_some_workers_are_not_the_stages(
    second: float | None, expected: float | None
) -> None:
    tally = Tally()
    tally.add("units", 2, [Reading(joules=5.0, meters=["NVML"]), Reading(joules=second)])
    assert tally.effort(2, Reading(joules=1.0)).joules == expected
