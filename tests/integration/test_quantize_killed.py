"""kill -9 of what quantizes, with a block in hand: it costs that block, and nothing else."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.ray_cluster import RayExecutor
from infra.storage import FileStore
from tasks.quantize import quantization
from tests.integration.quantize_run import PREFIX, Watched, run_stage

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

NUM_BLOCKS = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4, "group_size": 16},
    "layer_distill": {"bits": 2, "group_size": 16, "steps": 10},
}


@pytest.fixture(scope="module")
def source(make_llama: Callable[..., Path]) -> Path:
    return make_llama(num_hidden_layers=NUM_BLOCKS)


def blocks(begun: Path) -> list[int]:
    """Blocks in the order in which they were quantized, repeated ones too."""
    return [int(line) for line in begun.read_text().split()]


@pytest.mark.parametrize("method", OPTIONS)
def test_a_killed_process_costs_one_block(
    method: str, source: Path, text_file: Path, tmp_path: Path
) -> None:
    """Killed twice: with the third block in hand, then with that same block in hand again."""
    options = OPTIONS[method]
    whole = run_stage(
        source,
        text_file,
        FileStore(f"file://{tmp_path / 'whole'}"),
        tmp_path / "a",
        method,
        **options,
    )
    store, begun = FileStore(f"file://{tmp_path / 'killed'}"), tmp_path / "begun"

    def run(dies_at: int) -> int:
        folder = tmp_path / f"scratch{dies_at}"
        program = [sys.executable, "-m", "tests.integration.quantize_run"]
        places = [source, text_file, store.uri, folder, begun, dies_at]
        arguments = [*map(str, places), json.dumps({"method": method} | options)]
        return subprocess.run([*program, *arguments], timeout=180, check=False).returncode

    for dies_at in (3, 4):
        assert run(dies_at) == -signal.SIGKILL
        assert len(store.list(f"{PREFIX}/units/layers/")) == 2
    assert run(0) == 0
    assert blocks(begun) == [0, 1, 2, 2, 2, 3, 4]
    resumed = run_stage(source, text_file, store, tmp_path / "b", method, **options)
    assert resumed.digest == whole.digest
    assert resumed.facts == whole.facts


def test_a_killed_worker_costs_one_block(
    source: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker takes the blocks over, from behind those that are stored."""
    options = OPTIONS["gptq"]
    whole = run_stage(
        source,
        text_file,
        FileStore(f"file://{tmp_path / 'whole'}"),
        tmp_path / "a",
        "gptq",
        **options,
    )
    begun, store = tmp_path / "begun", FileStore(f"file://{tmp_path / 'killed'}")
    monkeypatch.setattr(quantization, "quantize_block", Watched(begun, dies_at=3))
    executor = RayExecutor("local", 2, 0, 1, tmp_path)
    try:
        resumed = run_stage(
            source, text_file, store, tmp_path / "b", "gptq", executor=executor, **options
        )
    finally:
        executor.close()
    assert blocks(begun) == [0, 1, 2, 2, 3, 4]
    assert resumed.digest == whole.digest
