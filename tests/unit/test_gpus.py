"""GPUs as the driver tells of them, played by the functions of pynvml that are asked."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from infra import gpus
from infra.gpus import Gpu, list_gpus

GIB = 2**30
H100 = "NVIDIA H100 80GB HBM3"


def refuse(*_: Any) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two boards; a handle is the board's index."""
    memory = SimpleNamespace(total=80 * GIB, free=79 * GIB, used=GIB)
    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetName": lambda handle: H100,
        "nvmlDeviceGetMemoryInfo": lambda handle: memory,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 1500 * handle,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    gpus.load_nvml.cache_clear()
    yield
    gpus.load_nvml.cache_clear()


def test_a_board_tells_its_name_memory_and_energy() -> None:
    assert list_gpus() == [
        Gpu(0, "GPU-0", H100, 80 * GIB, 79 * GIB, 0.0),
        Gpu(1, "GPU-1", H100, 80 * GIB, 79 * GIB, 1.5),
    ]


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("nvmlDeviceGetUUID", Gpu(1, None, H100, 80 * GIB, 79 * GIB, 1.5)),
        ("nvmlDeviceGetName", Gpu(1, "GPU-1", "NVIDIA GPU", 80 * GIB, 79 * GIB, 1.5)),
        ("nvmlDeviceGetMemoryInfo", Gpu(1, "GPU-1", H100, None, None, 1.5)),
        (
            "nvmlDeviceGetTotalEnergyConsumption",
            Gpu(1, "GPU-1", H100, 80 * GIB, 79 * GIB, None),
        ),
    ],
)
def test_what_a_board_refuses_blanks_that_alone(
    monkeypatch: pytest.MonkeyPatch, question: str, told: Gpu
) -> None:
    monkeypatch.setattr(pynvml, question, refuse)
    assert list_gpus()[1] == told


def test_a_board_out_of_reach_is_left_out_and_keeps_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index if index else refuse()
    )
    assert [gpu.index for gpu in list_gpus()] == [1]


@pytest.mark.parametrize("question", ["nvmlInit", "nvmlDeviceGetCount"])
def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, question, absent)
    assert list_gpus() == []


def test_without_the_module_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list_gpus() == []
