"""Training ranks as plain processes in one gloo group, without Ray: quick to start."""

import os
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch.distributed as dist

from infra.storage import FileStore, localize
from tasks.distill import deepspeed_config
from tasks.distill.job import TrainingJob
from tasks.distill.training import train_on_rank
from tests.integration.distill_driver import PREFIX, make_options


def run_ranks(
    store_uri: str, folders: tuple[Path, Path, Path], rendezvous: Path, **overrides: Any
) -> list[str | None]:
    """Train on two ranks for six steps; return what each of them says went astray.

    Args:
        folders: Teacher, student, corpus.
        rendezvous: A file that is not there yet.
        overrides: Of the recipe's options; and `stop_after`, the step after whose checkpoint both
            ranks stop.
    """
    with get_context("spawn").Pool(2) as pool:
        calls = [
            pool.apply_async(run_rank, (rank, store_uri, folders, rendezvous, overrides))
            for rank in range(2)
        ]
        return [call.get(timeout=240) for call in calls]


def run_rank(
    rank: int,
    store_uri: str,
    folders: tuple[Path, Path, Path],
    rendezvous: Path,
    overrides: dict[str, Any],
) -> str | None:
    os.environ["LOCAL_RANK"] = str(rank)
    deepspeed_config.STAGE_3 = dict.fromkeys(deepspeed_config.STAGE_3, 0)  # though it is small
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    stop_after = overrides.pop("stop_after", None)
    if stop_after:
        stop_at(stop_after)
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
    finally:
        dist.destroy_process_group()


def stop_at(step: int) -> None:
    """Let the rank end as soon as the checkpoint after so many steps is complete."""
    from tasks.distill import training

    save = training.save_checkpoint

    def save_and_stop(*args: Any) -> None:
        save(*args)
        if len(args[4]) == step:
            raise KeyboardInterrupt

    training.save_checkpoint = save_and_stop
