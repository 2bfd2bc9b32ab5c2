"""DeepSpeed around a student: started inside a process group, and without a compiler."""

import os
from typing import Any

import torch
import torch.distributed as dist

from tasks.distill.deepspeed_config import Batch, deepspeed_config

BETAS = (0.9, 0.95)
"""AdamW's, as language models are trained; torch's 0.999 averages over more steps than a short
run has."""


def start_engine(student: Any, options: dict[str, Any], batch: Batch) -> Any:
    """Return DeepSpeed's engine around the student, with torch's AdamW inside ZeRO.

    Norms and biases do not decay.
    """
    deepspeed = import_deepspeed()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    vectors = [p for p in student.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options["learning_rate"], betas=BETAS)
    engine, *_ = deepspeed.initialize(
        model=student, optimizer=optimizer, config=deepspeed_config(options, batch)
    )
    return engine


def import_deepspeed() -> Any:
    """Import DeepSpeed for the device at hand; it reads the environment as it is imported.

    On CPUs it would compile collectives over shared memory, for a minute or, without a
    compiler, in vain; gloo does without them. The table that says so is private to DeepSpeed.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    return deepspeed


def make_deterministic(num_threads: int) -> None:
    """Let equal inputs give equal bytes on this kind of device, with this many threads."""
    torch.set_num_threads(num_threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
