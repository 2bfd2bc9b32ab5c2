"""Training ranks as plain processes in one gloo group, without Ray: quick to start."""

import os
import time
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch.distributed as dist

from infra.storage import FileStore, localize
from tasks.distill import deepspeed_config
from tasks.distill.job import TrainingJob
from tasks.distill.training import train_on_rank
from tasks.errors import ClusterError
from tests.integration.distill_driver import PREFIX, make_options

WAIT_S = 4.0
"""After which ranks that wait for one that hangs give up."""


def run_ranks(
    store_uri: str,
    folders: tuple[Path, Path, Path],
    rendezvous: Path,
    num_ranks: int = 2,
    **overrides: Any,
) -> list[str | None]:
    """Train for six steps; return what each rank says went astray.

    Args:
        folders: Teacher, student, corpus.
        rendezvous: A file that is not there yet.
        overrides: Of the recipe's options; and `stop_after`, the step after whose checkpoint all
            ranks stop, or `hanging`, the rank that does not take the third step.
    """
    with get_context("spawn").Pool(num_ranks) as pool:
        calls = [
            pool.apply_async(run_rank, (rank, num_ranks, store_uri, folders, rendezvous, overrides))
            for rank in range(num_ranks)
        ]
        return [call.get(timeout=240) for call in calls]


def run_rank(
    rank: int,
    num_ranks: int,
    store_uri: str,
    folders: tuple[Path, Path, Path],
    rendezvous: Path,
    overrides: dict[str, Any],
) -> str | None:
    os.environ["LOCAL_RANK"] = str(rank)
    deepspeed_config.STAGE_3 = dict.fromkeys(deepspeed_config.STAGE_3, 0)  # though it is small
    hanging = overrides.pop("hanging", None)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=1800 if hanging is None else WAIT_S),
    )
    stop_after = overrides.pop("stop_after", None)
    if stop_after:
        stop_at(stop_after)
    if hanging is not None:
        hang(hangs=rank == hanging)
    store = FileStore(store_uri)
    teacher, student, corpus = map(str, folders)
    job = TrainingJob(
        store=store,
        prefix=PREFIX,
        localize=partial(localize, store),
        options=make_options(**({"batch_blocks": 16, "micro_batch_blocks": 4} | overrides)),
        teacher_uri=teacher,
        student_uri=student,
        corpus_uri=corpus,
        vocab_size=None,
        num_steps=6,
    )
    try:
        return train_on_rank({"job": job})
    except KeyboardInterrupt:
        return "stopped"
    except ClusterError as error:
        return str(error)
    finally:
        dist.destroy_process_group()


def hang(hangs: bool) -> None:
    """Let the rank do nothing in the third step, for longer than the others wait."""
    from tasks.distill import roll_call, training

    take = training.train_step
    roll_call.ANSWER_S = 1.0

    def sleep(step: int, *args: Any) -> dict[str, Any]:
        if hangs and step == 2:
            time.sleep(3 * WAIT_S)
            raise KeyboardInterrupt
        return take(step, *args)

    training.train_step = sleep


def stop_at(step: int) -> None:
    """Let the rank end as soon as the checkpoint after so many steps is complete."""
    from tasks.distill import training

    save = training.save_checkpoint

    def save_and_stop(*args: Any) -> None:
        save(*args)
        if len(args[4]) == step:
            raise KeyboardInterrupt

    training.save_checkpoint = save_and_stop
