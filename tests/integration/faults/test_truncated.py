"""Uploads that arrive cut short, and objects that lose their end in the store."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Scene, Undisturbed, what_is_said
from tests.integration.swift_server import Swift
from tests.unit.faulty_relay import Fault, Request, running_relay

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class CutOnce:
    """Cuts the first upload of weights of each kind."""

    def __init__(self) -> None:
        self.cut: list[str] = []
        self.at = 0.0

    def __call__(self, request: Request) -> Fault | None:
        kind = request.path.split("/")[3]
        if request.method != "PUT" or not request.path.endswith(".safetensors"):
            return None
        if kind in self.cut:
            return None
        self.cut.append(kind)
        self.at = time.monotonic()
        return "cut body"


def test_an_upload_that_is_cut_short_is_refused_and_made_again(
    own_swift: Swift,
    bucket: str,
    quick: Undisturbed,
    make_scene: Callable[..., Scene],
    ledger: Ledger,
) -> None:
    fault = CutOnce()
    with running_relay(own_swift.environment["AWS_ENDPOINT_URL"], fault) as url:
        scene = make_scene(quick, bucket, **own_swift.environment | {"AWS_ENDPOINT_URL": url})
        ending = scene.run()
        seconds = time.monotonic() - fault.at
        assert fault.cut == ["stages", "artifacts"]
        scene.check(ending)
        scene.close()
    ledger.add(
        Row(
            "an upload arrives cut short",
            "the server refuses it by its checksum, and it is made again",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "nothing",
            seconds,
        )
    )


def test_a_model_that_loses_its_end_in_the_store_is_pulled_by_nobody(
    quick: Undisturbed, make_scene: Callable[..., Scene], tmp_path: Path, ledger: Ledger
) -> None:
    scene = make_scene(quick)
    scene.check(scene.run())
    scene.reader.stop()  # it must not pull from here on, and says so as a wrong model
    digest = quick.digests["int8"]
    (weights,) = scene.place.store.glob(f"artifacts/tiny/int8/{digest}/files/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    process = scene.place.start("pull", "tiny", tmp_path / "model")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "is damaged" in err
    assert not (tmp_path / "model").exists()
    _, seconds = scene.go_on()
    scene.place.run("pull", "tiny", tmp_path / "model")
    scene.check_no_orphans()
    scene.reader.check()
    ledger.add(
        Row(
            "a published file loses its end in the store",
            "`pull` refuses it by its digest; the same night uploads it again",
            process.returncode,
            " ".join(err.split()).replace(str(scene.place.folder), "...")[:300],
            "nothing",
            seconds,
        )
    )
