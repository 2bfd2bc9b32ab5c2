"""kill -9 of Ray's own daemons in the middle of a night."""

import time
from collections.abc import Callable

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Scene, Undisturbed, wait_for, what_is_said

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize("daemon", ["raylet/raylet", "gcs/gcs_server"])
def test_without_ray_the_night_ends_and_the_next_one_goes_on(
    quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger, daemon: str
) -> None:
    scene = make_scene(quick)
    process = scene.start()
    wait_for(lambda: scene.has("stages/source/*/complete.json"), process)
    scene.kill(daemon)
    killed = time.monotonic()
    ending = scene.end(process)
    print(ending)
    seconds = scene.go_on_from("evaluate teacher", "source 1 local_text")
    scene.close()
    ledger.add(
        Row(
            f"Ray's {daemon.rpartition('/')[2]} is killed",
            f"the night ends after {ending.at - killed:.0f} s; the same command goes on",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "the stage that was at work",
            seconds,
        )
    )
