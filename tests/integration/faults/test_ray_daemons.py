"""kill -9 of Ray's own daemons, when the workers have been at work."""

import time
from collections.abc import Callable

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Ending, Scene, Undisturbed, wait_for, what_is_said

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def run_without(daemon: str, scene: Scene) -> tuple[Ending, float]:
    """Kill a daemon of a night's Ray; return the night's end, and when it was killed."""
    process = scene.start()
    wait_for(lambda: scene.has("stages/source/*/complete.json"), process)
    scene.kill(daemon)
    killed = time.monotonic()
    return scene.end(process), killed


def test_without_its_raylet_a_night_ends_and_the_next_one_goes_on(
    quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    """Ray ends the process that has lost its raylet, from within and at once."""
    scene = make_scene(quick)
    ending, _ = run_without("raylet/raylet", scene)
    assert ending.code == 1
    (run,) = scene.place.run_json("runs", "tiny")["unfinished"]
    assert run["status"] == "killed"
    seconds = scene.go_on_from("evaluate teacher", "source 1 local_text")
    scene.close()
    ledger.add(
        Row(
            "Ray's raylet is killed",
            "Ray ends the command at once, as kill -9 would; the same command goes on",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "the stage that was at work; `nightpress runs` says `killed`, no webhook is told",
            seconds,
        )
    )


def test_a_night_that_is_soon_over_outlives_its_gcs(
    quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    """Ray waits for it, a minute by default, before it ends what needs it."""
    scene = make_scene(quick)
    ending, killed = run_without("gcs/gcs_server", scene)
    scene.check(ending)
    scene.close()
    ledger.add(
        Row(
            "Ray's GCS is killed",
            "the night goes on with the workers that it has, for the minute that Ray waits",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "nothing",
            ending.at - killed,
        )
    )
