"""kill -9 of what computes: Ray's workers in every stage, and Ray itself."""

import signal
import time
from collections.abc import Callable

import psutil
import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import (
    Scene,
    Undisturbed,
    command_line,
    wait_for,
    what_is_said,
)

pytestmark = pytest.mark.integration


def busy_workers(scene: Scene) -> list[psutil.Process]:
    """Ray names a worker's process by the method that it runs."""
    return [p for p in scene.processes() if (command_line(p) or [""])[0].startswith("ray::")]


def kill_a_worker(scene: Scene, stage: str) -> Callable[[], bool]:
    """Return what kills the first worker that is at work once a stage has begun."""

    def kill() -> bool:
        if not scene.has(f"stages/{stage}/*"):
            return False
        at_work = [p for p in busy_workers(scene) if "IDLE" not in command_line(p)[0]]
        for process in at_work[:1]:
            process.send_signal(signal.SIGKILL)
        return bool(at_work)

    return kill


@pytest.mark.slow
def test_a_worker_killed_in_every_stage_costs_its_unit_of_work(
    whole: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    scene = make_scene(whole)
    process = scene.start()
    for stage in ("evaluate", "source", "prune", "distill", "quantize"):
        wait_for(kill_a_worker(scene, stage), process)
        killed = time.monotonic()
    ending = scene.end(process)
    seconds = time.monotonic() - killed
    scene.check(ending)
    scene.close()
    ledger.add(
        Row(
            "a Ray worker is killed in each stage of one night",
            "another one takes its unit of work over, a training starts again from its last "
            "checkpoint; the night goes on",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "the unit of work in hand, or the steps since the last checkpoint",
            seconds,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_a_night_whose_ray_is_killed_is_gone_on_with(
    daemon: str, quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    scene = make_scene(quick)
    process = scene.start()
    wait_for(lambda: scene.has("stages/evaluate/*") and busy_workers(scene), process)
    scene.kill(f"/{daemon}")
    killed = time.monotonic()
    ending = scene.end(process)
    ended_s = time.monotonic() - killed
    record, seconds = scene.go_on()
    again = [stage["title"] for stage in record["stages"] if stage["outcome"] == "computed"]
    scene.close()
    ledger.add(
        Row(
            f"Ray's {daemon} is killed",
            f"the night ends after {ended_s:.0f} s; the same command goes on, with "
            f"{len(again)} of {len(record['stages'])} stages to compute",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "the units of work in hand",
            seconds,
        )
    )
