"""A wall clock that jumps by more than a day in the middle of a night."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Scene, Undisturbed, wait_for, what_is_said

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DAY_S = 26 * 3600.0
CLOCK = Path(__file__).parent / "jumping_clock"


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """The file that says by how much the clocks of a scene's processes are wrong."""
    return tmp_path / "clock"


def with_clock(clock: Path) -> dict[str, str]:
    paths = [str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "JUMPING_CLOCK": str(clock)}


def test_neither_deadline_nor_lease_nor_gc_is_misled(
    clock: Path, quick: Undisturbed, make_scene: Callable[..., Scene], ledger: Ledger
) -> None:
    """Forward by more than the 24 h that gc waits, then back by as much."""
    scene = make_scene(quick, **with_clock(clock))
    in_two_hours = datetime.now(UTC) + timedelta(hours=2)
    process = scene.start("--deadline", f"{in_two_hours:%H:%M}")
    wait_for(lambda: scene.has("stages/source/*"), process)
    clock.write_text(str(DAY_S))
    scene.place.run("gc", "--delete", "--store", f"file://{scene.place.store}")
    wait_for(lambda: scene.has("stages/quantize/*"), process)
    clock.write_text(str(-DAY_S))
    jumped = time.monotonic()
    ending = scene.end(process)
    scene.check(ending)
    scene.close()
    ledger.add(
        Row(
            f"the clock jumps by {DAY_S / 3600:+.0f} h, gc runs, and it jumps back twice as far",
            "the night goes on: its deadline and its lease do not trust the clock, and gc keeps "
            "what a night at work may need",
            ending.code,
            what_is_said(ending, scene.place.folder),
            "nothing",
            ending.at - jumped,
        )
    )
