"""A training run as arithmetic: batches, steps and learning rates, and DeepSpeed's configuration.

Pure Python, so that a preflight can find a batch that does not divide before anything starts.
"""

import math
from dataclasses import dataclass
from typing import Any

FINAL_FRACTION = 0.1
"""The cosine ends at this fraction of the peak learning rate."""

BUCKET_ELEMENTS = 50_000_000
"""Gradients reduced at once; DeepSpeed's own default would claim 2 GB on each worker."""

STAGE_3 = {
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 10**9,
    "stage3_max_reuse_distance": 10**9,
}
"""In elements: parameters that stay on every rank because they are small; how many are whole at a
time; and how soon one must be needed again to stay whole till then."""


@dataclass(frozen=True)
class Batch:
    """How the blocks of one optimiser step are spread over ranks and forward passes.

    The step is the same whatever the number of ranks: with fewer of them each takes more forward
    passes, and where these do not come out even, the last ones lie beyond the batch and are to
    weigh nothing.
    """

    num_blocks: int
    """Blocks that one optimiser step learns from: the global batch."""
    micro_blocks: int
    """Blocks per forward pass of one rank."""
    world_size: int

    @property
    def num_accumulated(self) -> int:
        """Forward passes of one rank per optimiser step."""
        return math.ceil(self.num_blocks / (self.micro_blocks * self.world_size))

    @property
    def num_places(self) -> int:
        """Blocks that all passes of all ranks have room for, `num_blocks` or more."""
        return self.micro_blocks * self.num_accumulated * self.world_size

    def micro_batches(self, rank: int) -> list[slice]:
        """Which places, [0, num_places), each of a rank's forward passes takes."""
        starts = [
            (index * self.world_size + rank) * self.micro_blocks
            for index in range(self.num_accumulated)
        ]
        return [slice(start, start + self.micro_blocks) for start in starts]


def split_batch(batch_blocks: int, micro_batch_blocks: int, world_size: int) -> Batch:
    """Spread a global batch over as many ranks as the recipe asks for.

    Raises:
        ValueError: it is no multiple of what all ranks take in one forward pass.
    """
    per_pass = micro_batch_blocks * world_size
    if batch_blocks % per_pass:
        multiple = math.ceil(batch_blocks / per_pass) * per_pass
        remedies = [f"batch_blocks: {multiple}"]
        if batch_blocks % world_size == 0:
            micro = math.gcd(batch_blocks // world_size, micro_batch_blocks)
            remedies.append(f"micro_batch_blocks: {micro}")
        raise ValueError(
            f"distill: batch_blocks must be a multiple of micro_batch_blocks x cluster.workers = "
            f"{micro_batch_blocks} x {world_size}, got {batch_blocks}; "
            f"{' or '.join(remedies)} would do"
        )
    return Batch(batch_blocks, micro_batch_blocks, world_size)


def count_steps(num_tokens: int, batch_blocks: int, block_tokens: int) -> int:
    """Optimiser steps after which at least `num_tokens` have been seen."""
    return math.ceil(num_tokens / (batch_blocks * block_tokens))


def learning_rate_at(step: int, num_steps: int, peak: float, warmup: float) -> float:
    """Learning rate of a step (counted from 0): a linear warm-up, then a cosine to a tenth.

    Args:
        warmup: Fraction of the steps that warm up.
    """
    num_warmup = round(warmup * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - 1 - num_warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)


def check_precision(dtype: str, device: str) -> None:
    """Make sure that the device trains in a type.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        ValueError: it does not.
    """
    if dtype == "float16" and device == "cpu":
        raise ValueError(
            "distill: dtype: float16 trains on GPUs only, got cluster.gpus_per_worker: 0; "
            "use bfloat16 or float32"
        )


def deepspeed_config(options: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a recipe's distillation options.

    The optimiser is torch's AdamW, handed over: DeepSpeed's own would be compiled on first use.
    In 16 bits and with offload, ZeRO 0 becomes 1: DeepSpeed's unpartitioned bf16 optimiser takes a
    step of zero gradients before the first, which spoils Adam's bias correction, and only what is
    partitioned is offloaded.
    """
    offload = options["offload"]
    partitioned = offload != "none" or options["dtype"] != "float32"
    zero: dict[str, Any] = STAGE_3 | {
        "stage": max(options["zero_stage"], 1 if partitioned else 0),
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if offload != "none":
        zero["offload_optimizer"] = {"device": offload}
    return _shared(options, batch) | {
        "gradient_clipping": options["clip_norm"],
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def frozen_config(options: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a teacher that ZeRO-3 partitions over the ranks."""
    return _shared(options, batch) | {"zero_optimization": STAGE_3 | {"stage": 3}}


def _shared(options: dict[str, Any], batch: Batch) -> dict[str, Any]:
    return {
        "train_batch_size": batch.num_places,
        "train_micro_batch_size_per_gpu": batch.micro_blocks,
        "gradient_accumulation_steps": batch.num_accumulated,
        "bf16": {"enabled": options["dtype"] == "bfloat16"},
        "fp16": {"enabled": options["dtype"] == "float16"},
    }
