"""Two nights of one recipe at once: one is skipped or waits, and both end in the same models."""

import time
from collections.abc import Callable

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Scene, Undisturbed, wait_for, what_is_said

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_a_second_night_is_skipped_or_waits(
    quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    scene = make_scene(quick)
    first = scene.start()
    wait_for(lambda: scene.has("leases/tiny/*"), first)
    waiting = scene.start("--set", "schedule.overlap=wait")
    skipped = scene.end(scene.start())
    assert skipped.code == 5 and "another night is running" in skipped.err
    scene.check(scene.end(first))
    freed = time.monotonic()
    waited = scene.end(waiting)
    seconds = time.monotonic() - freed
    assert scene.check(waited)["status"] == "unchanged"
    assert "waiting for its end" in waited.err
    scene.close()
    place = scene.place.folder
    ledger.add(
        Row(
            "a second night begins, overlap: skip",
            "it ends; the first one goes on",
            skipped.code,
            what_is_said(skipped, place),
            "nothing",
            skipped.seconds,
        )
    )
    ledger.add(
        Row(
            "a second night begins, overlap: wait",
            "it waits, and finds everything stored",
            waited.code,
            what_is_said(waited, place),
            "nothing",
            seconds,
        )
    )
