"""A checkpoint of another number of ranks, by DeepSpeed's universal checkpoint.

Universal Checkpointing (Lian et al. 2024, arXiv 2406.18820) takes ZeRO's partitions apart into one
file for each parameter and kind of state; from these each new rank takes its own part. Nothing is
rounded on the way: the state is the same to the last bit, and only sums over ranks change their
order from there on.
"""

from __future__ import annotations

import socket
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

UNIVERSAL = "universal"
"""Tag of a converted checkpoint."""


def convert(folder: Path, tag: str) -> None:
    """Put all ranks' files in `folder/tag` together into `folder/universal`.

    In this process, and one file at a time: ranks may not start processes of their own.
    """
    from deepspeed.checkpoint import ds_to_universal

    (folder / UNIVERSAL).mkdir()
    ds_to_universal.main(
        Namespace(
            input_folder=str(folder / tag),
            output_folder=str(folder / UNIVERSAL),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # says that no weight is split by tensor parallelism
        )
    )


def load_universal(engine: Any, folder: Path) -> None:
    """Load `folder/universal` into this rank's engine; all ranks take part."""
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    # DeepSpeed reads this where its engine starts, before anyone knows what there is to load.
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(folder), tag=UNIVERSAL)
    engine._config.load_universal_checkpoint = False
    # ZeRO 3 gives all groups the options of the first, and one counter of steps to share, which
    # each of them would count on.
    for group, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in engine.optimizer.optimizer.state.values():
        state["step"] = torch.as_tensor(state["step"]).clone()


def shared_folder(own: Path) -> Path:
    """Return the folder of the first rank on this host, given each rank's own."""
    folders: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(folders, (socket.gethostname(), own))
    here: Path = next(folder for host, folder in folders if host == socket.gethostname())
    return here
