"""Where a run finds its workers, and how many."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.recipe_parts import Config, Count


class Cluster(Config):
    ray: str = "local"
    """`local`, or the address of a running cluster. RAY_ADDRESS overrides."""
    workers: Count = 2
    """Worker processes, for units of work and for training."""
    min_workers: Count | None = None
    """Fewest workers that a training goes on with, from its last checkpoint, while others are lost:
    each step learns from the same blocks, so the loss is the same but for rounding. Workers that
    come back take part again within a minute. Left out, a training waits for all of `workers`, and
    ends in the same bytes whatever was lost. Units of work never wait for lost workers."""
    rank_timeout_s: Annotated[float, Field(ge=1)] = 1800
    """Seconds that a worker of a training waits for the others, as while they load a model or store
    a checkpoint, before that is an error which names who did not answer. One that died is noticed
    at once."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    threads_per_worker: Count = 1
    offload: Literal["none", "layers"] = "none"
    """`layers`: a model that is pruned need not fit into a worker's memory. Its blocks' weights
    stay in the checkpoint's files, mapped into memory, and come to where the worker computes one
    block at a time. Slower by the reading; the results are the same."""

    @model_validator(mode="after")
    def check_workers(self) -> Self:
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(
                f"cluster.min_workers is {self.min_workers}, more than cluster.workers, "
                f"{self.workers}; expected at most as many"
            )
        return self
