"""Whether this machine has the GPUs that a recipe asks for, and a torch that can use them."""

from infra.findings import Finding
from infra.gpus import Gpu, list_gpus

GIB = 2**30


def check_gpus(wanted: float) -> list[Finding]:
    """Hold the GPUs that all workers want together against what this machine and its torch have."""
    import torch

    return judge_gpus(wanted, list_gpus(), torch.version.cuda)


def judge_gpus(wanted: float, gpus: list[Gpu], cuda: str | None) -> list[Finding]:
    """Args: cuda: The version that torch was built for; None is a build for CPUs."""
    if len(gpus) < wanted:
        message = f"{wanted:g} GPUs are asked for, {len(gpus)} found (by NVML)"
        remedy = "lower cluster.workers or cluster.gpus_per_worker, or name a Ray cluster"
        return [Finding("error", "gpus", message, remedy)]
    if cuda is None:
        remedy = "install PyTorch's CUDA build: https://pytorch.org/get-started"
        return [Finding("error", "gpus", "torch was built for CPUs alone", remedy)]
    findings = [Finding("ok", "gpus", f"{len(gpus)} x {gpus[0].name}, torch for CUDA {cuda}")]
    busy = [
        gpu.free_bytes
        for gpu in gpus
        if gpu.free_bytes is not None and gpu.free_bytes < (gpu.total_bytes or 0) / 2
    ]
    if busy:
        free = min(busy) / GIB
        message = f"{len(busy)} of {len(gpus)} GPUs are more than half full ({free:.0f} GiB free)"
        remedy = "see with nvidia-smi who uses them"
        findings.append(Finding("warning", "gpus", message, remedy))
    return findings
