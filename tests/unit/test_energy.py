"""Meters: NVML and RAPL as the machine has them, here played by files and by a list."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra import energy
from infra.energy import RaplCounter, find_zones, gpus_in_use, metered, work_begins
from infra.gpus import Gpu

SPAN = 10**9
H100 = "NVIDIA H100 80GB HBM3"


class Zones:
    """RAPL's folder: two packages, one of them with memory and cores of its own, and psys."""

    def __init__(self, root: Path) -> None:
        names = {
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:0:1": "dram",
            "intel-rapl:1": "package-1",
            "intel-rapl:2": "psys",
        }
        self.root = root
        for folder, name in names.items():
            (root / folder).mkdir()
            (root / folder / "name").write_text(f"{name}\n")
            (root / folder / "max_energy_range_uj").write_text(str(SPAN - 1))
            self.count(folder, 0)

    def count(self, folder: str, microjoules: int) -> None:
        (self.root / folder / "energy_uj").write_text(str(microjoules % SPAN))


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zones:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "list_gpus", list)
    return Zones(tmp_path)


def test_packages_and_their_memory_are_counted_and_nothing_twice(zones: Zones) -> None:
    assert [zone.name for zone in find_zones()] == [
        "intel-rapl:0",
        "intel-rapl:0:1",
        "intel-rapl:1",
    ]


def test_a_process_gets_the_share_that_its_threads_are_of_all(
    zones: Zones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy.os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    zones.count("intel-rapl:0", SPAN - 3_000_000)
    with metered() as reading:
        zones.count("intel-rapl:0", SPAN + 5_000_000)  # begins anew in between
        zones.count("intel-rapl:0:1", 4_000_000)
        zones.count("intel-rapl:2", 77_000_000)
    assert reading.joules == pytest.approx((8 + 4) * 2 / 8)
    assert reading.meters == ["RAPL"] and reading.seconds > 0


def test_long_work_is_sampled_before_a_counter_laps_us(
    zones: Zones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "SAMPLE_S", 0.001)
    seen = threading.Event()
    counter = RaplCounter(find_zones())
    read = counter.read

    def read_and_tell() -> None:
        read()
        if counter.joules and counter.joules > 0:
            seen.set()

    monkeypatch.setattr(counter, "read", read_and_tell)
    with counter.watched():
        zones.count("intel-rapl:0", SPAN - 1_000_000)
        assert seen.wait(10)
        zones.count("intel-rapl:0", SPAN + 2_000_000 - 1_000_000)
    assert counter.joules == pytest.approx(1001.0)


def test_what_is_loaded_first_is_told_apart_from_the_work(zones: Zones) -> None:
    with metered() as outer:
        with metered() as reading:
            time.sleep(0.05)
            work_begins()
        assert 0.05 <= reading.loading_s <= reading.seconds
    assert outer.loading_s == 0
    work_begins()  # where nothing is metered


def test_without_a_meter_there_is_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "list_gpus", list)
    with metered() as reading:
        pass
    assert reading.joules is None and reading.meters == []
    assert len(reading.devices) == 1, "the processor"


def test_a_meter_that_goes_away_fails_nothing(zones: Zones) -> None:
    with metered() as reading:
        (zones.root / "intel-rapl:0" / "energy_uj").unlink()
    assert reading.joules is None


class Boards:
    """Two GPUs; each reading of the first finds 50 J more, the second has no counter."""

    def __init__(self) -> None:
        self.joules = 0.0

    def list(self) -> list[Gpu]:
        self.joules += 50.0
        told = {0: self.joules, 1: None}
        return [Gpu(i, f"GPU-{i + 1}", H100, None, None, joules) for i, joules in told.items()]


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "list_gpus", Boards().list)
    cuda = SimpleNamespace(is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize("visible", ["0", "GPU-1"])
def test_a_gpus_board_is_counted_for_the_share_that_the_worker_has(
    boards: None, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("NIGHTPRESS_GPU_SHARE", "0.5")
    with metered() as reading:
        pass
    assert reading.joules == pytest.approx(25.0) and reading.meters == ["NVML"]
    assert reading.devices == [H100]


def test_half_of_the_gpus_metered_is_no_figure(
    boards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with metered() as reading:
        pass
    assert len(gpus_in_use()) == 2 and reading.joules is None


def test_a_gpu_that_this_process_does_not_see_is_not_its_own(
    boards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-8a5f")
    assert gpus_in_use() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-1")
    assert [gpu.index for gpu in gpus_in_use()] == [0, 1]


def test_a_gpu_that_nothing_was_computed_on_is_not_in_use(
    boards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    with metered() as reading:
        pass
    assert reading.joules is None and reading.meters == [] and H100 not in reading.devices
    assert "torch" not in sys.modules, "nothing is imported for a reading"
