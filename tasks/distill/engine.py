"""DeepSpeed around a student: started inside a process group, and without a compiler."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from tasks.distill.deepspeed_config import Batch, deepspeed_config, frozen_config

BETAS = (0.9, 0.95)
"""AdamW's, as language models are trained; torch's 0.999 averages over more steps than a short
run has."""


def start_engine(student: Any, options: dict[str, Any], batch: Batch) -> Any:
    """Return DeepSpeed's engine around the student, with torch's AdamW inside ZeRO.

    Norms and biases do not decay; what needs no gradient is not trained.
    """
    deepspeed = import_deepspeed()
    trained = [p for p in student.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=options["learning_rate"], betas=BETAS
    )
    engine, *_ = deepspeed.initialize(
        model=student, optimizer=optimizer, config=deepspeed_config(options, batch)
    )
    return engine


def partition(module: Any, options: dict[str, Any], batch: Batch) -> Any:
    """Return DeepSpeed's engine around a module that only computes, each rank holding its share of
    every parameter (ZeRO-3).

    Args:
        module: In the host's memory; a device need not hold it whole.
    """
    deepspeed, config = import_deepspeed(), frozen_config(options, batch)
    deepspeed.zero.Init(module=module, config_dict_or_path=config)
    engine, *_ = deepspeed.initialize(model=module, config=config)
    engine.eval()
    return engine


def gathered(parameters: Iterable[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    """Let parameters be whole for a while, on all ranks, which must all take part.

    Outside of ZeRO-3 they are so anyway.
    """
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return nullcontext()
    return import_deepspeed().zero.GatheredParameters(partitioned)  # type: ignore[no-any-return]


def restore_parameters(module: torch.nn.Module) -> None:
    """Give rank 0 a whole tensor of its own for each parameter, out of ZeRO's partitions and flat
    buffers, so that the module can be saved; called on all ranks, and ends the training."""
    for parameter in module.parameters():
        with gathered([parameter]):
            whole = parameter.detach().clone() if dist.get_rank() == 0 else None
        if whole is not None:
            parameter.data = whole


def local_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return what this rank holds of a parameter."""
    part = getattr(parameter, "ds_tensor", parameter)
    assert isinstance(part, torch.Tensor)
    return part


def import_deepspeed() -> Any:
    """Import DeepSpeed for the device at hand; it reads the environment as it is imported.

    On CPUs it would compile collectives over shared memory, for a minute or, without a
    compiler, in vain; gloo does without them. And it would clone the process group, and forget
    how long ranks may wait for each other. The names that say otherwise are private to it.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    if dist.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
        deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD
    return deepspeed


def make_deterministic(num_threads: int) -> None:
    """Let equal inputs give equal bytes on this kind of device, with this many threads."""
    torch.set_num_threads(num_threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
