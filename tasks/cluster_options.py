"""Where a run finds its workers, and how many."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.recipe_parts import Config, Count


class Cluster(Config):
    ray: str = "local"
    """`local`, or the address of a running cluster. RAY_ADDRESS overrides."""
    workers: Count = 2
    """Worker processes, for units of work and for training."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    threads_per_worker: Count = 1
    offload: Literal["none", "layers"] = "none"
    """`layers`: a model that is pruned need not fit into a worker's memory. Its blocks' weights
    stay in the checkpoint's files, mapped into memory, and come to where the worker computes one
    block at a time. Slower by the reading; the results are the same."""
