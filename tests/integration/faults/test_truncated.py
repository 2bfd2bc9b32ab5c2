"""A published object that loses its end in the store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Ending, Scene, Undisturbed, what_is_said

pytestmark = [pytest.mark.integration, pytest.mark.slow]


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
            what_is_said(Ending(1, "", err, 0, 0), scene.place.folder),
            "nothing",
            seconds,
        )
    )
