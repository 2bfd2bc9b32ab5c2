"""The Ray executor where the cluster is smaller than the recipe thinks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.ray_cluster import RayExecutor


def nothing() -> None:
    return None


def double(_: None, unit: int) -> int:
    return 2 * unit


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[RayExecutor]:
    running = RayExecutor("local", 2, 0, 1, tmp_path)
    yield running
    running.close()


@pytest.mark.integration
def test_a_worker_that_finds_no_room_holds_nothing_up(executor: RayExecutor) -> None:
    """One of two CPUs is somebody else's: one worker does the work, the other comes later."""
    ray = executor.connect()

    class Guest:
        def sit(self) -> None:
            return None

    guest: Any = ray.remote(Guest).options(num_cpus=1).remote()
    ray.get(guest.sit.remote())
    assert sorted(executor.map(double, range(6), nothing)) == [0, 2, 4, 6, 8, 10]
    ray.kill(guest)
    assert sorted(executor.map(double, range(6), nothing)) == [0, 2, 4, 6, 8, 10]
