"""The GPUs of this machine, asked of the driver through NVML; no CUDA context is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

MILLIJOULES = 1e-3


@dataclass(frozen=True)
class Gpu:
    """A board as NVML counts them; None stands for what the driver does not tell of it."""

    index: int
    uuid: str | None
    name: str
    total_bytes: int | None
    """None of a GPU that shares the processor's memory."""
    free_bytes: int | None
    joules: float | None
    """Since the driver was loaded; None of a part of a GPU (MIG), or before Volta."""


def list_gpus() -> list[Gpu]:
    """Return the GPUs that the driver lets us see; none where there is no driver."""
    nvml = load_nvml()
    if nvml is None:
        return []

    def ask(question: Callable[..., Any], *of: Any) -> Any:
        try:
            return question(*of)
        except nvml.NVMLError:
            return None

    gpus = []
    for index in range(ask(nvml.nvmlDeviceGetCount) or 0):
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        millijoules = ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        gpu = Gpu(
            index=index,
            uuid=ask(nvml.nvmlDeviceGetUUID, handle),
            name=ask(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
            total_bytes=memory and memory.total,
            free_bytes=memory and memory.free,
            joules=None if millijoules is None else millijoules * MILLIJOULES,
        )
        gpus.append(gpu)
    return gpus


@cache
def load_nvml() -> Any:
    """Return the module `pynvml`, ready for questions; None where there is no driver.

    None also on a cluster's node that lacks the module: energy is metered there, and a meter that
    is missing fails no work.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
