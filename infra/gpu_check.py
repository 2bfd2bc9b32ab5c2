"""What GPUs this machine has, asked of the driver; no CUDA context is made."""

import shutil
import subprocess
from dataclasses import dataclass

from infra.findings import Finding

MIB = 2**20
GIB = 2**30
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Gpu:
    name: str
    total_bytes: int
    free_bytes: int


def list_gpus() -> list[Gpu]:
    """Ask nvidia-smi; without it, or where it fails, there are none that could be used."""
    if shutil.which(QUERY[0]) is None:
        return []
    try:
        asked = subprocess.run(QUERY, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(asked.stdout)


def parse_gpus(table: str) -> list[Gpu]:
    gpus = []
    for line in table.splitlines():
        name, total, free = (cell.strip() for cell in line.rsplit(",", 2))
        gpus.append(Gpu(name, int(total) * MIB, int(free) * MIB))
    return gpus


def check_gpus(wanted: float) -> list[Finding]:
    """Hold the GPUs that all workers want together against what this machine and its torch have."""
    import torch

    return judge_gpus(wanted, list_gpus(), torch.version.cuda)


def judge_gpus(wanted: float, gpus: list[Gpu], cuda: str | None) -> list[Finding]:
    """Args: cuda: The version that torch was built for; None is a build for CPUs."""
    if len(gpus) < wanted:
        message = f"{wanted:g} GPUs are asked for, {len(gpus)} found (by nvidia-smi)"
        remedy = "lower cluster.workers or cluster.gpus_per_worker, or name a Ray cluster"
        return [Finding("error", "gpus", message, remedy)]
    if cuda is None:
        remedy = "install PyTorch's CUDA build: https://pytorch.org/get-started"
        return [Finding("error", "gpus", "torch was built for CPUs alone", remedy)]
    findings = [Finding("ok", "gpus", f"{len(gpus)} x {gpus[0].name}, torch for CUDA {cuda}")]
    busy = [gpu for gpu in gpus if gpu.free_bytes < gpu.total_bytes / 2]
    if busy:
        free = min(gpu.free_bytes for gpu in busy) / GIB
        message = f"{len(busy)} of {len(gpus)} GPUs are more than half full ({free:.0f} GiB free)"
        remedy = "see with nvidia-smi who uses them"
        findings.append(Finding("warning", "gpus", message, remedy))
    return findings
