"""Which rank does not answer: asked by the others when they have waited for it in vain."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tasks.errors import ClusterError

if TYPE_CHECKING:
    from infra.storage import Store

ANSWER_S = 10.0
"""Ranks that began to wait together give up together, but for this."""
WAITED_IN_VAIN = re.compile(r"timed out|connection (closed|reset)", re.IGNORECASE)
"""What gloo says of a collective in which somebody is missing; NCCL ends the process instead."""


def introduce_ranks() -> list[dict[str, Any]]:
    """Return host and process of every rank, the same on all; all take part."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, {"host": socket.gethostname(), "pid": os.getpid()})
    return ranks


@contextmanager
def named_absentees(store: Store, prefix: str, launch: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the group's ranks, and turn a collective that hung into an error that names whoever
    was missing from it.

    A rank that waited in vain leaves its number in the store, waits ANSWER_S, and sees which
    numbers are not there.

    Args:
        prefix: The stage's folder in the store.
        launch: Id of this launch of the group, the same on all ranks.

    Raises:
        ClusterError: after the process group's timeout.
    """
    ranks: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    try:
        ranks[:] = introduce_ranks()
        yield ranks
    except RuntimeError as error:
        if not WAITED_IN_VAIN.search(str(error)):
            raise
        # Below checkpoints/, so that it goes with them at the end.
        folder = f"{prefix}/checkpoints/waiting/{launch}/"
        store.write(f"{folder}{dist.get_rank()}", b"")
        time.sleep(ANSWER_S)
        waiting = {int(key.rpartition("/")[2]) for key in store.list(folder)}
        missing = [
            f"rank {rank} (process {ranks[rank].get('pid')} on {ranks[rank].get('host')})"
            for rank in range(len(ranks))
            if rank not in waiting
        ]
        raise ClusterError(
            f"{', '.join(missing) or 'no rank'} of {len(ranks)} did not answer the others: "
            f"{str(error).splitlines()[0][:200]}",
            "look at that process and its host; ranks wait for each other for "
            "cluster.rank_timeout_s",
        ) from error
