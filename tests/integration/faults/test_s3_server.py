"""kill -9 of the S3 server, in the middle of a request that matters."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Scene, Undisturbed, wait_for, what_is_said
from tests.integration.swift_server import Swift
from tests.unit.faulty_relay import Request, running_relay

pytestmark = [pytest.mark.integration, pytest.mark.slow]

OUTAGE_S = 5.0
MOMENTS = {
    "a stage's upload": "/stages/quantize/",
    "the upload of an artifact": "/artifacts/tiny/",
    "the channel's new entry": "/channels/tiny/",
}
"""What the server is asked to write when it is killed."""


class Outages:
    """Kills the server when the first write of a kind arrives, before it is answered."""

    def __init__(self, swift: Swift, wanted: list[str]) -> None:
        self.swift = swift
        self.waiting = list(wanted)
        self.begun = {kind: threading.Event() for kind in wanted}

    def __call__(self, request: Request) -> None:
        if request.method != "PUT" or not self.waiting or self.waiting[0] not in request.path:
            return
        kind = self.waiting.pop(0)
        self.swift.kill("proxy")
        self.begun[kind].set()

    def wait_for(self, kind: str, process: subprocess.Popen[str]) -> float:
        """Return when the server was killed. Fails where the command ends before."""
        wait_for(self.begun[kind].is_set, process)
        return time.monotonic()


@pytest.fixture
def begin(
    own_swift: Swift, bucket: str, quick: Undisturbed, make_scene: Callable[..., Scene]
) -> Iterator[Callable[[list[str]], tuple[Scene, Outages]]]:
    """Make a scene whose server dies at the first write of each kind, in this order."""
    with ExitStack() as relays:

        def make(wanted: list[str]) -> tuple[Scene, Outages]:
            outages = Outages(own_swift, wanted)
            relay = running_relay(own_swift.environment["AWS_ENDPOINT_URL"], outages)
            extra = {"AWS_ENDPOINT_URL": relays.enter_context(relay)}
            return make_scene(quick, bucket, **own_swift.environment | extra), outages

        yield make


def test_a_server_that_comes_back_costs_seconds(
    begin: Callable[..., tuple[Scene, Outages]], own_swift: Swift, ledger: Ledger
) -> None:
    """Three times in one night."""
    scene, outages = begin(list(MOMENTS.values()))
    process = scene.start()
    for kind in MOMENTS.values():
        killed = outages.wait_for(kind, process)
        time.sleep(OUTAGE_S)
        own_swift.start("proxy")
    ending = scene.end(process)
    scene.check(ending)
    scene.close()
    ledger.add(
        Row(
            f"the S3 server is killed during {', '.join(MOMENTS)}; each time it is back after "
            f"{OUTAGE_S:.0f} s",
            "the request is made again until it is answered; the night goes on",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "nothing",
            ending.at - killed,
        )
    )


def test_a_server_that_stays_away_ends_the_night_and_the_next_one_goes_on(
    begin: Callable[..., tuple[Scene, Outages]], own_swift: Swift, ledger: Ledger
) -> None:
    kind = MOMENTS["a stage's upload"]
    scene, outages = begin([kind])
    process = scene.start()
    killed = outages.wait_for(kind, process)
    ending = scene.end(process)
    gave_up_s = ending.at - killed
    assert ending.code == 1 and "Traceback" not in ending.err
    own_swift.start("proxy")
    own_swift.wait_until_up()
    seconds = scene.go_on_from("evaluate teacher", "source 1 local_text", "corpus")
    scene.close()
    ledger.add(
        Row(
            "the S3 server is killed during a stage's upload, and stays away",
            f"the night gives up after {gave_up_s:.0f} s; the same command goes on",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "the stage whose upload it was",
            seconds,
        )
    )
