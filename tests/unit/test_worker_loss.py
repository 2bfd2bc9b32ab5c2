"""What a training says when workers are lost, and what a recipe may ask for."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.ray_group import last_words
from infra.storage import FileStore
from tasks.cluster_options import Cluster
from tasks.distill.distillation import describe_lost_workers
from tasks.distill.progress import followed_progress
from tests.unit.stage_space import make_space


def test_no_more_workers_are_needed_than_there_are() -> None:
    assert Cluster(workers=4, min_workers=4).min_workers == 4
    with pytest.raises(ValidationError, match=r"min_workers is 5, more than cluster.workers, 4"):
        Cluster(workers=4, min_workers=5)


def test_the_record_says_in_how_many_steps_workers_were_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    curve = [{"world_size": size} for size in (4, 4, 3, 2, 4)]
    assert describe_lost_workers(curve[:2], 4) == {}
    assert not caplog.records
    facts = describe_lost_workers(curve, 4)
    assert facts == {"steps_with_fewer_workers": 2, "fewest_workers": 2}
    assert "2 of 5 steps were taken by fewer than 4 workers" in caplog.text


def test_a_group_that_was_started_again_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the first launch, even where an earlier command has left its progress."""
    monkeypatch.setattr("tasks.distill.progress.INTERVAL_S", 0.01)
    caplog.set_level(logging.WARNING)
    store = FileStore(f"file://{tmp_path / 'store'}")
    space = make_space(store, tmp_path, prefix="stages/distill/key")

    def write(step: int, *ranks: tuple[str, int]) -> None:
        progress: dict[str, Any] = {"step": step, "num_steps": 9}
        progress["ranks"] = [{"host": host, "pid": pid} for host, pid in ranks]
        store.write(f"{space.prefix}/progress.json", json.dumps(progress).encode())
        time.sleep(0.1)

    write(2, ("a", 1), ("b", 1))
    with followed_progress(space, 9):
        time.sleep(0.1)
        write(2, ("a", 2), ("b", 2))
        write(4, ("a", 2), ("b", 2))
        assert not caplog.records
        write(4, ("a", 3))
    (record,) = caplog.records
    assert "started again, at step 4 of 9, with 1 workers after 2, on a" in record.message


def test_what_was_raised_on_a_rank_is_found_below_its_traceback() -> None:
    said = "Traceback (most recent call last):\n  File x\n    f()\nE: it failed\n  try this"
    assert last_words(RuntimeError(said)) == "E: it failed\n  try this"
    assert last_words(RuntimeError("")) == ""
