"""Energy that this process took while it worked, read where it works.

GPUs are read through NVML (`nvmlDeviceGetTotalEnergyConsumption`, Volta and later), which counts a
whole board; processors through RAPL's counters (Linux `powercap`), which count whole packages and
their memory, so that a process is given the share of them that its threads are of all. Where
neither can be read there is no figure, and whoever wants one has to estimate it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from infra.gpus import Gpu, list_gpus

POWERCAP = Path("/sys/class/powercap")
SAMPLE_S = 60.0
"""RAPL's counters begin anew after 260 kJ or so: an hour at 70 W, 12 minutes at 360 W."""
MICROJOULES = 1e-6


@dataclass
class Reading:
    """What some work took; filled in at its end."""

    seconds: float = 0.0
    loading_s: float = 0.0
    """Of these, until the work said that it begins: it will not grow with the work."""
    joules: float | None = None
    """None where no meter could be read."""
    meters: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    """The GPUs that were in use, else the processor."""


CURRENT: ContextVar[tuple[Reading, float] | None] = ContextVar("reading", default=None)
"""What is metered now, and when that began."""


def work_begins() -> None:
    """Say that all is imported and loaded, where the work at hand is metered."""
    if current := CURRENT.get():
        reading, began = current
        reading.loading_s = time.monotonic() - began


@contextmanager
def metered() -> Iterator[Reading]:
    """Measure what is done inside; nothing that cannot be read fails the work."""
    reading = Reading()
    began = time.monotonic()
    processor = RaplCounter(find_zones())
    before = {gpu.index: gpu.joules for gpu in list_gpus()}
    token = CURRENT.set((reading, began))
    try:
        with processor.watched():
            yield reading
    finally:
        CURRENT.reset(token)
        reading.seconds = time.monotonic() - began
        gpus = gpus_in_use()
        reading.devices = [gpu.name for gpu in gpus] or [processor_name()]
        on_gpus = [
            gpu.joules - before[gpu.index]  # type: ignore[operator]
            for gpu in gpus
            if None not in (gpu.joules, before.get(gpu.index))
        ]
        joules = 0.0
        if on_gpus:
            joules += sum(on_gpus) * float(os.environ.get("NIGHTPRESS_GPU_SHARE", "1"))
            reading.meters.append("NVML")
        if processor.joules is not None:
            threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
            joules += processor.joules * min(1.0, threads / (os.cpu_count() or 1))
            reading.meters.append("RAPL")
        if reading.meters and len(on_gpus) == len(gpus):
            reading.joules = joules


class RaplCounter:
    """The energy of processors and their memory, summed up so often that no counter laps us."""

    def __init__(self, zones: list[Path]) -> None:
        self.zones = zones
        self.joules: float | None = None
        self.last: dict[Path, int] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        if not self.zones:
            yield
            return
        done = threading.Event()

        def sample() -> None:
            while not done.wait(SAMPLE_S):
                self.read()

        self.read()
        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.read()

    def read(self) -> None:
        """Add what each zone counted since the last time."""
        try:
            for zone in self.zones:
                now = int((zone / "energy_uj").read_text())
                span = int((zone / "max_energy_range_uj").read_text())
                since = (now - self.last.get(zone, now)) % (span + 1)
                self.joules = (self.joules or 0.0) + since * MICROJOULES
                self.last[zone] = now
        except (OSError, ValueError):
            self.zones, self.joules = [], None


def find_zones() -> list[Path]:
    """Return RAPL's readable zones: packages, and the memory beside them, which is in no package.

    Cores and graphics are parts of a package; `psys` is all of it once more.
    """
    found = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            continue
        if name.startswith("package") or name == "dram":
            found.append(zone)
    return found


@cache
def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "CPU")


def gpus_in_use() -> list[Gpu]:
    """Return the GPUs that this process has begun to compute on; nothing is imported for this."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    found, visible = list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return [gpu for gpu in found if {str(gpu.index), gpu.uuid} & set(visible.split(","))]
