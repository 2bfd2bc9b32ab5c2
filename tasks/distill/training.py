"""The training loop, as every rank of the group runs it under DeepSpeed.

Every rank knows the whole corpus and the whole schedule, so nothing but gradients and losses is
exchanged. What a step computes is fixed by (seed, step): a run that was killed and goes on from
a checkpoint ends in the same bytes as one that was not.
"""

from __future__ import annotations

import json
import math
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tasks.distill.blocks import Blocks, batch_rows, derive_seed, load_blocks
from tasks.distill.checkpoints import (
    delete_checkpoints,
    load_newest,
    save_checkpoint,
    upload_folder,
)
from tasks.distill.deepspeed_config import Batch, learning_rate_at, split_batch
from tasks.distill.engine import make_deterministic, start_engine
from tasks.distill.objective import Term, build_terms, learned_positions, sum_terms
from tasks.distill.progress import ProgressWriter
from tasks.errors import TrainingError
from tasks.models.checkpoint import load_model, save_model
from tasks.plugins import load_plugin

if TYPE_CHECKING:
    from infra.storage import Store


@dataclass(frozen=True)
class TrainingJob:
    """What every rank is told. It travels to the workers by pickle."""

    store: Store
    prefix: str
    """The stage's folder in the store."""
    localize: Callable[[str], Path]
    """Turns a URI into a local path, on the worker's own machine."""
    options: dict[str, Any]
    """The stage's options."""
    teacher_uri: str | None
    """None where no loss looks at the teacher."""
    student_uri: str
    corpus_uri: str
    vocab_size: int | None
    """Logits to keep of both models, where one of them pads its vocabulary; None keeps all."""
    num_steps: int
    prepare: Callable[[Any], None] | None = None
    """Called with the student before it is put under DeepSpeed."""


@dataclass(frozen=True)
class Models:
    student: Any
    """DeepSpeed's engine around it."""
    teacher: Any
    """None where no loss looks at it."""
    vocab_size: int | None


def train_on_rank(config: dict[str, Any]) -> str | None:
    """Train this rank's share of `config["job"]`, in the process group that Ray Train has made.

    Returns:
        What went astray, or None. A failure that all ranks meet alike is returned rather than
        raised, since a group that is started again would only meet it again.
    """
    try:
        train(config["job"])
    except TrainingError as error:
        return str(error)
    return None


def train(job: TrainingJob) -> None:
    """Train from the newest checkpoint, or from the start, to the end, and store the student.

    Raises:
        TrainingError: the loss or the gradient is not a number any more.
    """
    options = job.options
    make_deterministic(options["threads"])
    batch = split_batch(
        options["batch_blocks"], options["micro_batch_blocks"], dist.get_world_size()
    )
    blocks = load_blocks(job.localize(job.corpus_uri))
    terms = build_terms(options["losses"])
    models = load_models(job, batch)
    progress = ProgressWriter(
        job.store, job.prefix, job.num_steps, batch.num_blocks * blocks.ids.shape[1]
    )
    launch = [uuid.uuid4().hex[:8]]
    dist.broadcast_object_list(launch)
    curve = load_newest(models.student, job.store, job.prefix)
    progress.begin(curve)
    while len(curve) < job.num_steps:
        curve.append(train_step(len(curve), job, models, terms, blocks, batch))
        done = len(curve) == job.num_steps
        saving = len(curve) % options["checkpoint_steps"] == 0 or done
        check_finite(curve, models.student.module if saving else None, job)
        progress.update(curve)
        if saving and not done:
            save_checkpoint(models.student, job.store, job.prefix, launch[0], curve)
    if dist.get_rank() == 0:
        store_student(job, models.student.module, launch[0], curve, progress)


def load_models(job: TrainingJob, batch: Batch) -> Models:
    """Load the teacher, initialise the student, and put the student under DeepSpeed."""
    options = job.options
    trusted = options["trust_remote_code"]
    teacher = None
    if job.teacher_uri:
        teacher = load_model(job.localize(job.teacher_uri), options["dtype"], trusted, spread=False)
    chosen = options["initializer"]
    initialize = load_plugin("initializer", chosen["name"])
    student = initialize(
        job.localize(job.student_uri), options["seed"], trusted, **chosen["options"]
    )
    if job.prepare:
        job.prepare(student)
    engine = start_engine(student.train(), options, batch)
    return Models(student=engine, teacher=teacher, vocab_size=job.vocab_size)


def train_step(
    step: int,
    job: TrainingJob,
    models: Models,
    terms: list[Term],
    blocks: Blocks,
    batch: Batch,
) -> dict[str, Any]:
    """Take one optimiser step; return its point of the loss curve, the same on all ranks."""
    options = job.options
    engine, rank = models.student, dist.get_rank()
    torch.manual_seed(derive_seed(options["seed"], step, rank))  # dropout, where there is any
    rate = learning_rate_at(step, job.num_steps, options["learning_rate"], options["warmup"])
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    rows = batch_rows(step, batch.num_blocks, len(blocks.ids), options["seed"])
    ids_BT = blocks.ids[rows].long().to(engine.device)
    mask_BT = blocks.loss_mask[rows].to(engine.device)
    # One denominator for the whole step, so that how it is split changes nothing. DeepSpeed
    # averages gradients over ranks: times the world size, they are a sum again.
    num_learned = int(learned_positions(mask_BT).sum())
    weights = torch.tensor([term.weight for term in terms], device=engine.device)
    sums = torch.zeros(len(terms), device=engine.device)
    for micro in batch.micro_batches(rank):
        micro_sums = term_sums(models, terms, ids_BT[micro], mask_BT[micro])
        loss = (weights * micro_sums).sum() * batch.world_size / max(num_learned, 1)
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()
        sums += micro_sums.detach()
    dist.all_reduce(sums)
    means = sums / max(num_learned, 1)
    norm = engine.get_global_grad_norm()  # None under ZeRO 0 in fp32
    return {
        "step": step,
        "loss": float((weights * means).sum()),
        "terms": {term.label: float(mean) for term, mean in zip(terms, means, strict=True)},
        "learning_rate": rate,
        "gradient_norm": None if norm is None else float(norm),
    }


def term_sums(
    models: Models, terms: list[Term], ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """Run both models once; return each term's sum over the learned tokens, [num_terms]."""
    teacher_logits_BTV = None
    if models.teacher is not None:
        with torch.no_grad():
            output = models.teacher(input_ids=ids_BT, use_cache=False)
        teacher_logits_BTV = output.logits[..., : models.vocab_size]
    output = models.student(input_ids=ids_BT, use_cache=False)
    student_logits_BTV = output.logits[..., : models.vocab_size]
    return sum_terms(terms, student_logits_BTV, teacher_logits_BTV, ids_BT, mask_BT)


def check_finite(curve: list[dict[str, Any]], student: Any, job: TrainingJob) -> None:
    """Stop before a broken state is saved.

    Args:
        student: Where it is about to be saved, so that its weights are looked at, too.

    Raises:
        TrainingError: the loss, the gradient or a weight is not a number any more.
    """
    point = curve[-1]
    numbers = (point["loss"], point["gradient_norm"] or 0.0)
    weights = () if student is None else student.parameters()
    if all(map(math.isfinite, numbers)) and all(bool(w.isfinite().all()) for w in weights):
        return
    every = job.options["checkpoint_steps"]
    kept = (len(curve) - 1) // every * every
    raise TrainingError(
        f"step {point['step']} of {job.num_steps} broke the student: loss {point['loss']}, "
        f"gradient norm {point['gradient_norm']}, learning rate {point['learning_rate']:.2e}; "
        + (f"the checkpoint after {kept} steps is kept" if kept else "no checkpoint was due yet"),
        "try a smaller learning_rate or clip_norm, a longer warmup, or dtype: float32",
    )


def store_student(
    job: TrainingJob,
    student: Any,
    launch: str,
    curve: list[dict[str, Any]],
    progress: ProgressWriter,
) -> None:
    """Store the trained student and its loss curve; `trained.json` comes last, create-only."""
    for parameter in student.parameters():  # out of ZeRO's flat buffer, to be saved one by one
        parameter.data = parameter.data.clone()
    with tempfile.TemporaryDirectory(prefix="nightpress-") as folder:
        save_model(student, job.localize(job.student_uri), Path(folder))
        files = upload_folder(job.store, Path(folder), f"{job.prefix}/student/{launch}")
    points = {"tokens_per_s": progress.tokens_per_s(curve), "points": curve}
    job.store.write(f"{job.prefix}/loss_curve.json", json.dumps(points).encode())
    last = curve[-max(1, len(curve) // 10) :]
    trained = {
        "folder": f"{job.prefix}/student/{launch}",
        "files": files,
        "nodes": progress.nodes,
        "initial_loss": curve[0]["loss"],
        "final_loss": sum(point["loss"] for point in last) / len(last),
    }
    job.store.create(f"{job.prefix}/trained.json", json.dumps(trained, indent=1).encode())
    delete_checkpoints(job.store, job.prefix)
