"""One process that loads several models, and what becomes of it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import CheckpointError
from tasks.publish import loader_process
from tasks.publish.loader_process import LoaderProcess

IDS = [[1, 2, 3, 4]]


def ask(loader: LoaderProcess, folder: Path) -> dict[str, Any]:
    return loader.ask(folder=str(folder), ids=IDS, token_type_ids=[], trust_remote_code=False)


def test_several_models_are_loaded_by_one_process_and_a_new_one_follows_a_death(
    tiny_llama: Path, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    with LoaderProcess() as loader:
        process = loader.start()
        first, second = ask(loader, tiny_llama), ask(loader, make_llama(seed=1))
        assert first["loader"] == "transformers"
        assert first["nats_per_token"] != second["nats_per_token"]
        assert loader.start() is process
        with pytest.raises(CheckpointError, match=r"config\.json"):
            ask(loader, tmp_path)
        assert process.poll() == 1
        assert ask(loader, tiny_llama) == first
        successor = loader.start()
    assert successor.poll() is not None


def test_who_does_not_answer_in_time_is_ended(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_process, "TIMEOUT_S", 0.1)
    with LoaderProcess() as loader, pytest.raises(CheckpointError, match=r"not within 0\.1 s"):
        ask(loader, tiny_llama)


def test_who_is_killed_is_said_to_be(tiny_llama: Path) -> None:
    with LoaderProcess() as loader:
        threading.Timer(0.2, loader.start().kill).start()  # as the kernel does without memory
        with pytest.raises(CheckpointError, match="its process was ended by SIGKILL"):
            ask(loader, tiny_llama)
