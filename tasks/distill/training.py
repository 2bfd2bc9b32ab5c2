"""The training loop, as every rank of the group runs it under DeepSpeed.

Every rank knows the whole corpus and the whole schedule, so nothing but gradients and losses (and
under ZeRO-3 weights) is exchanged. What a step computes is fixed by (seed, step): a run that was
killed and goes on from a checkpoint ends in the same bytes as one that was not. With fewer ranks
the steps learn from the same blocks, and only sums change their order.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import torch
import torch.distributed as dist

from infra.energy import work_begins
from tasks.distill.blocks import Blocks, batch_rows, derive_seed, load_blocks
from tasks.distill.checkpoints import best_marker, load_newest, save_checkpoint, steps_of
from tasks.distill.deepspeed_config import Batch, learning_rate_at
from tasks.distill.divergence import describe_failure
from tasks.distill.engine import local_part, make_deterministic
from tasks.distill.examples import read_examples
from tasks.distill.job import TrainingJob
from tasks.distill.loading import Models, load_models
from tasks.distill.progress import ProgressWriter
from tasks.distill.roll_call import named_absentees
from tasks.distill.saving import store_student
from tasks.errors import TrainingError


def train_on_rank(config: dict[str, Any]) -> str | None:
    """Train this rank's share of `config["job"]`, in the process group that Ray Train has made.

    Returns:
        What went astray, or None. A failure that all ranks meet alike is returned rather than
        raised, since a group that is started again would only meet it again.
    """
    try:
        train(config["job"])
    except (TrainingError, ValueError) as error:
        return str(error)
    return None


def train(job: TrainingJob) -> None:
    """Train from the newest checkpoint, or from the start, to the end, and store the student.

    Raises:
        TrainingError: the run has diverged, or its numbers are no numbers any more.
        ClusterError: other ranks did not answer within the process group's timeout.
    """
    make_deterministic(job.options["threads"])
    launch = [uuid.uuid4().hex[:8]]
    dist.broadcast_object_list(launch)
    with named_absentees(job.store, job.prefix, launch[0]) as ranks:
        train_together(job, launch[0], ranks)


def train_together(job: TrainingJob, launch: str, ranks: list[dict[str, Any]]) -> None:
    """Do what `train` says, as one launch of the group.

    Args:
        launch: Its id, the same on all ranks.
        ranks: Host and process of each.
    """
    options = job.options
    batch = Batch(options["batch_blocks"], options["micro_batch_blocks"], dist.get_world_size())
    blocks = load_blocks(job.localize(job.corpus_uri))
    models = load_models(job, batch, blocks)
    step_tokens = batch.num_blocks * blocks.ids.shape[1]
    progress = ProgressWriter(job.store, job.prefix, job.num_steps, step_tokens, ranks)
    curve = load_newest(models.engine, job.store, job.prefix)
    progress.begin(curve)
    every = options["checkpoint_steps"]
    work_begins()
    while len(curve) < job.num_steps:
        curve.append(train_step(len(curve), job, models, blocks, batch))
        done = len(curve) == job.num_steps
        saving = len(curve) % every == 0 or done
        failure = describe_failure(curve)
        if saving and not failure and not weights_are_finite(models.engine):
            failure = f"a weight is no number after step {len(curve) - 1}"
        if failure:
            raise stopped(failure, job, curve)
        progress.update(curve)
        if saving and not done:
            save_checkpoint(models.engine, job.store, job.prefix, launch, curve, every)
    store_student(job, models, launch, curve, progress)


def train_step(
    step: int, job: TrainingJob, models: Models, blocks: Blocks, batch: Batch
) -> dict[str, Any]:
    """Take one optimiser step; return its point of the loss curve, the same on all ranks."""
    options, objective = job.options, models.objective
    engine, rank = models.engine, dist.get_rank()
    rate = learning_rate_at(step, job.num_steps, options["learning_rate"], options["warmup"])
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    rows = batch_rows(step, batch.num_blocks, len(blocks.ids), options["seed"])
    examples = read_examples(blocks, rows, engine.device).padded(batch.num_places)
    rows = torch.cat([rows, rows[:1].expand(batch.num_places - batch.num_blocks)])
    # One denominator for the whole step, so that how it is split changes nothing. DeepSpeed
    # averages gradients over ranks: times the world size, they are a sum again.
    num_learned = max(int(examples.rows.sum()), 1)
    sums = torch.zeros(len(objective.losses), device=engine.device)
    num_skipped = engine.skipped_steps
    for micro in batch.micro_batches(rank):
        # Dropout, where there is any, is that of the blocks, whoever computes them.
        torch.manual_seed(derive_seed(options["seed"], step, micro.start))
        part = examples.take(micro)
        with models.teacher(rows[micro], part) as lesson:
            loss, micro_sums = engine(part, lesson)
        engine.backward(loss * batch.world_size / num_learned, scale_wrt_gas=False)
        engine.step()
        sums += micro_sums
    dist.all_reduce(sums)
    means = (sums / num_learned).tolist()
    skipped = engine.skipped_steps > num_skipped
    norm = engine.get_global_grad_norm()  # None under ZeRO 0 in fp32
    if skipped:  # some gradient is no number: in float16 that is how the loss's scale is found
        norm = None if options["dtype"] == "float16" else math.inf
    return {
        "step": step,
        "loss": sum(w * mean for w, mean in zip(objective.weights, means, strict=True)),
        "terms": dict(zip(objective.labels, means, strict=True)),
        "learning_rate": rate,
        "gradient_norm": None if norm is None else float(norm),
        "skipped": skipped,
        "world_size": batch.world_size,
    }


def weights_are_finite(engine: Any) -> bool:
    """Whether all weights are numbers, on all ranks; called where they are about to be saved."""
    parts = map(local_part, engine.module.parameters())
    finite = torch.tensor(float(all(bool(p.isfinite().all()) for p in parts)), device=engine.device)
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return bool(finite)


def stopped(failure: str, job: TrainingJob, curve: list[dict[str, Any]]) -> TrainingError:
    """Return the error that says what went astray, what is left, and what to try."""
    best = best_marker(job.store, job.prefix, curve, job.options["checkpoint_steps"])
    kept = "there is no checkpoint from before"
    if best:
        marker, loss = best
        kept = (
            f"the best checkpoint, after {steps_of(marker)} steps, with a loss of {loss:.4g} in "
            f"those that followed, is kept at {job.store.uri}/{marker.removesuffix('.json')}"
        )
    return TrainingError(
        f"training stopped, of {job.num_steps} steps: {failure}; {kept}",
        "try a smaller learning_rate or clip_norm, a longer warmup, or dtype: float32",
    )
