"""Credentials that are withdrawn in the middle of a night."""

from collections.abc import Callable

import pytest

from infra.storage import S3Store
from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Scene, Undisturbed, wait_for, what_is_said
from tests.integration.swift_server import Swift

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NEW_SECRET = "rotated"


def rotate(swift: Swift, old: str, new: str) -> None:
    """Restart the server with another secret for its one account."""
    conf = swift.root / "proxy.conf"
    text = conf.read_text()
    assert f"= {old} .admin" in text
    conf.write_text(text.replace(f"= {old} .admin", f"= {new} .admin"))
    swift.kill("proxy")
    swift.start("proxy")
    swift.wait_until_up()


def test_a_rotated_key_ends_the_night_and_the_next_one_goes_on(
    own_swift: Swift,
    bucket: str,
    quick: Undisturbed,
    make_scene: Callable[..., Scene],
    monkeypatch: pytest.MonkeyPatch,
    ledger: Ledger,
) -> None:
    old = own_swift.environment["AWS_SECRET_ACCESS_KEY"]
    scene = make_scene(quick, bucket, **own_swift.environment)
    store = S3Store(bucket)
    process = scene.start()
    wait_for(lambda: "complete.json" in "".join(store.list("stages/corpus/")), process)
    rotate(own_swift, old, NEW_SECRET)
    try:
        ending = scene.end(process)
        assert ending.code == 1 and "Traceback" not in ending.err
        assert "SignatureDoesNotMatch" in ending.err and old not in ending.err
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", NEW_SECRET)
        scene.place.extra["AWS_SECRET_ACCESS_KEY"] = NEW_SECRET
        seconds = scene.go_on_from("evaluate teacher", "source 1 local_text", "corpus")
        scene.close()
    finally:
        rotate(own_swift, NEW_SECRET, old)
    ledger.add(
        Row(
            "the bucket's key is rotated",
            "the night ends at once; with the new key, the same command goes on",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "the stage that was at work",
            seconds,
        )
    )
