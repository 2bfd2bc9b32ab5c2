"""kill -9 of Ray's own daemons, when the workers have been at work."""

import time
from collections.abc import Callable

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Ending, Scene, Undisturbed, wait_for, what_is_said

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATIENCE_S = 50
"""Less than the 60 s that Ray tries to reach its GCS (`gcs_rpc_server_reconnect_timeout_s`)."""


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
            "the stage that was at work; the next night tells the webhooks",
            seconds,
        )
    )


def test_without_its_gcs_a_night_has_a_minute(
    quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    """Ray tries for so long to reach it; a night that is over by then has lost nothing."""
    scene = make_scene(quick)
    ending, killed = run_without("gcs/gcs_server", scene)
    survived_s = ending.at - killed
    if ending.code:
        assert survived_s > PATIENCE_S and "Failed to connect to GCS" in ending.err
        _, seconds = scene.go_on()
    else:
        scene.check(ending)
        seconds = survived_s
    scene.close()
    ledger.add(
        Row(
            "Ray's GCS is killed",
            "the night goes on with the workers that it has; Ray ends the command, as kill -9 "
            "would, when it has not reached its GCS for a minute",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "what takes longer than that minute",
            seconds,
        )
    )
