"""The Ray executor where the cluster is smaller than the recipe thinks."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.stopping import Deadline, DeadlineReached, StoppableExecutor
from infra.ray_cluster import RayExecutor


def nothing() -> None:
    return None


def work(_: None, unit: int) -> tuple[int, int]:
    """Return the unit and who has done it."""
    time.sleep(0.5)
    return unit, os.getpid()


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[RayExecutor]:
    running = RayExecutor("local", 2, 0, 1, tmp_path)
    yield running
    running.close()


@pytest.mark.integration
def test_a_worker_that_finds_no_room_holds_nothing_up(executor: RayExecutor) -> None:
    """One of two CPUs is somebody else's for a while; the worker that comes late takes part."""
    ray = executor.connect()

    class Guest:
        def sit(self) -> None:
            return None

    guest: Any = ray.remote(Guest).options(num_cpus=1).remote()
    ray.get(guest.sit.remote())
    done = []
    for unit, pid in executor.map(work, range(40), nothing):
        done.append((unit, pid))
        if len(done) == 4:
            assert len({pid for _, pid in done}) == 1
            ray.kill(guest)
    assert sorted(unit for unit, _ in done) == list(range(40))
    assert len({pid for _, pid in done}) == 2


@pytest.mark.integration
def test_at_the_deadline_what_runs_ends_and_nothing_begins(
    executor: RayExecutor, tmp_path: Path
) -> None:
    list(executor.map(leave_trace, [(tmp_path, -1), (tmp_path, -2)], nothing))  # workers are there
    deadline = Deadline(time.monotonic() + 1.25, "07:00 UTC")
    stoppable = StoppableExecutor(executor, deadline, deadline.check)
    done = []
    with pytest.raises(DeadlineReached):
        for unit in stoppable.map(leave_trace, ((tmp_path, i) for i in range(40)), nothing):
            done.append(unit)  # noqa: PERF402
    assert 4 <= len(done) <= 6, "two workers, half a second each"
    begun = {int(path.name) for path in tmp_path.glob("[0-9]*")}
    assert begun == set(done), "every unit that was begun has ended, and was told of"


def leave_trace(_: None, unit: tuple[Path, int]) -> int:
    folder, number = unit
    (folder / str(number)).touch()
    time.sleep(0.5)
    return number
