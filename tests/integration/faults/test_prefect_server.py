"""kill -9 of Prefect's server in the middle of a night: nothing of the night depends on it."""

import time
from collections.abc import Callable

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.prefect_process import Prefect
from tests.integration.faults.scene import Scene, Undisturbed, wait_for, what_is_said

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_a_night_outlives_the_teams_server(
    own_prefect: Prefect, quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    scene = make_scene(quick)
    process = scene.start()
    wait_for(lambda: scene.has("stages/source/*"), process)
    own_prefect.kill()
    killed = time.monotonic()
    try:
        ending = scene.end(process)
    finally:
        own_prefect.start()
    scene.check(ending)
    scene.close()
    ledger.add(
        Row(
            "the team's Prefect server is killed, and stays away",
            "the night goes on; Prefect's UI never hears of its end",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "what Prefect's UI would have shown",
            ending.at - killed,
        )
    )


def test_a_night_outlives_its_own_server(
    own_prefect: Prefect, quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    scene = make_scene(quick)
    del scene.place.extra["PREFECT_API_URL"]
    process = scene.start()
    wait_for(lambda: scene.has("stages/source/*"), process)
    scene.kill("prefect.server.api.server")
    killed = time.monotonic()
    ending = scene.end(process)
    scene.check(ending)
    scene.close()
    ledger.add(
        Row(
            "the night's own Prefect server is killed",
            "the night goes on",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "nothing",
            ending.at - killed,
        )
    )
