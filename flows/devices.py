"""What clusters are made of: a few devices with their makers' figures."""

from __future__ import annotations

import re
from typing import NamedTuple

EFFICIENCY = 0.3
"""Of a GPU's peak that is reached; assumed until a stage was measured on one. Large trainings
reached 0.21 (GPT-3) to 0.46 (PaLM): Chowdhery et al. 2022, arXiv 2204.02311, table 3."""


class Device(NamedTuple):
    name: str
    half_tflops: float
    """Peak of dense matrix products in 16 bits, in 10^12 operations a second."""
    single_tflops: float
    """Peak in float32, without TF32."""
    memory_gb: float
    """Decimal; 0 of a processor, whose memory is the machine's."""
    efficiency: float = EFFICIENCY

    def speed(self, in_half: bool) -> float:
        """Return operations a second that it is taken to reach."""
        return 1e12 * self.efficiency * (self.half_tflops if in_half else self.single_tflops)


CPU = Device("cpu", 0.02, 0.02, 0, efficiency=1.0)
"""One thread of a server's processor; reached in float32, not a peak."""

DEVICES = (
    # NVIDIA's data sheets, dense (half of what they print "with sparsity"), SXM where there is one.
    Device("T4", 65, 8.1, 16),
    Device("V100", 125, 15.7, 32),
    Device("A10", 125, 31.2, 24),
    Device("A100", 312, 19.5, 80),
    Device("L4", 121, 30.3, 24),
    Device("L40S", 362, 91.6, 48),
    Device("H100", 989, 67, 80),
    Device("H200", 989, 67, 141),
    Device("B200", 2250, 75, 180),
    Device("RTX4090", 165.2, 82.6, 24),  # NVIDIA Ada architecture whitepaper, float32 sums
    CPU,
)
GPU_MAKERS = ("nvidia", "tesla", "quadro", "amd instinct")


class Cluster(NamedTuple):
    """Workers of one kind, one on each device."""

    num_workers: int
    device: Device

    def __str__(self) -> str:
        return f"{self.num_workers}x{self.device.name}"


def parse_cluster(text: str) -> Cluster:
    """Read `8xH100`.

    Raises:
        ValueError: it is none, or the device is not in the table.
    """
    match = re.fullmatch(r"([1-9]\d*)x([\w-]+)", text)
    named = {device.name.lower(): device for device in DEVICES}
    if match is None or match[2].lower() not in named:
        raise ValueError(
            f"--cluster: expected <number>x<device> such as 8xH100, got {text!r}; devices: "
            + ", ".join(device.name for device in DEVICES)
        )
    return Cluster(int(match[1]), named[match[2].lower()])


def recognize(name: str) -> Device | None:
    """Return the device of a name that NVML or the kernel gives; None of a GPU not in the table."""
    plain = name.lower().replace(" ", "")
    gpus = [device for device in DEVICES if device is not CPU]
    if name.lower().startswith(GPU_MAKERS):
        found = [device for device in gpus if device.name.lower() in plain]
        return max(found, key=lambda device: len(device.name), default=None)
    return CPU
