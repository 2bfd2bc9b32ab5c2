"""A disk that fills up in the middle of a night."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.faults.ledger import Ledger, Row
from tests.integration.faults.scene import Scene, Undisturbed, wait_for, what_is_said

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]

DISK_MIB = 1200
"""Preflight wants 1 GiB free."""
LEFT_BYTES = 20_000
"""Less than the model that is to be written; records of some hundred bytes still fit."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    done = subprocess.run(mounted, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(disk: Path) -> Path:
    """Leave next to nothing; return the file that takes the rest."""
    balloon = disk / "balloon"
    space = os.statvfs(disk)
    assert space.f_blocks * space.f_frsize <= DISK_MIB * 2**20, "not the small disk"
    with balloon.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - LEFT_BYTES)
    return balloon


def test_a_full_disk_ends_the_night_and_the_next_one_goes_on(
    quick: Undisturbed, make_scene: Callable[..., Scene], tmp_path: Path, ledger: Ledger
) -> None:
    """Under the state folder, with the store in it."""
    with small_disk(tmp_path / "disk") as disk:
        (tmp_path / "place").mkdir()
        (tmp_path / "place" / "state").symlink_to(disk)
        scene = make_scene(quick)
        process = scene.start()
        wait_for(lambda: scene.has("stages/corpus/*/complete.json"), process)
        balloon = fill_up(disk)
        ending = scene.end(process)
        assert ending.code == 1 and "No space left on device" in ending.err
        assert "Traceback" not in ending.err
        balloon.unlink()
        seconds = scene.go_on_from("evaluate teacher", "source 1 local_text", "corpus")
        scene.close()
    ledger.add(
        Row(
            "the disk is full",
            "the night ends; with space again, the same command goes on",
            ending.code,
            what_is_said(ending, disk),
            "the stage that was at work",
            seconds,
        )
    )
