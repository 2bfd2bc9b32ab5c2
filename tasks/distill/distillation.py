"""The distill stage: train the student on the corpus, towards the teacher where a loss says so."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from tasks.digests import digest_file
from tasks.distill.checkpoints import download_files
from tasks.distill.deepspeed_config import check_precision, count_steps, split_batch
from tasks.distill.job import TrainingJob
from tasks.distill.progress import followed_progress
from tasks.distill.teacher_logits.shard import Origin, digest_vocabulary
from tasks.distill.training import train_on_rank
from tasks.distill_options import needs_a_teacher
from tasks.errors import ClusterError, TrainingError
from tasks.models.checkpoint import describe_model, load_tokenizer
from tasks.models.folder import load_config
from tasks.records import CorpusRef, ModelRef, TeacherLogitsRef

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tasks.stage_space import StageSpace

log = logging.getLogger(__name__)


def distill(
    space: StageSpace,
    options: dict[str, Any],
    *,
    teacher: ModelRef,
    student: ModelRef,
    corpus: CorpusRef,
    teacher_logits: TeacherLogitsRef | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> ModelRef:
    """Train on a process group of `world_size` ranks and write the trained student to `space.out`.

    Whatever was killed on the way, ranks or this process, training goes on from the newest
    checkpoint below the stage's prefix, and is not repeated once it is done.

    Args:
        teacher_logits: Read in place of running the teacher.
        prepare: Called on each rank with the student before it is trained.

    Raises:
        ValueError: the batch does not divide over the ranks, the device does not train in the
            type, or the tokenizers differ.
        ClusterError: ranks failed more often than they may.
        TrainingError: the run has diverged, or its numbers are no numbers any more.
    """
    check_precision(options["dtype"], options["device"])
    batch = split_batch(
        options["batch_blocks"], options["micro_batch_blocks"], options["world_size"]
    )
    num_steps = count_steps(options["num_tokens"], batch.num_blocks, corpus.block_tokens)
    towards_teacher = any(needs_a_teacher(loss["name"]) for loss in options["losses"])
    # Whatever the losses: the corpus is in the teacher's tokens.
    shared = shared_vocab_size(space.local(teacher.uri), space.local(student.uri))
    vocab_size = shared if towards_teacher else None
    origin = None
    if teacher_logits:
        vocab_size = teacher_logits.vocab_size
        vocabulary = digest_vocabulary(load_tokenizer(space.local(student.uri)))
        origin = Origin(teacher.digest, vocabulary, corpus.digest)
    job = TrainingJob(
        store=space.store,
        prefix=space.prefix,
        localize=space.localizer,
        options=options,
        teacher_uri=teacher.uri if towards_teacher and not teacher_logits else None,
        student_uri=student.uri,
        corpus_uri=corpus.uri,
        vocab_size=vocab_size,
        num_steps=num_steps,
        teacher_logits_uri=teacher_logits.uri if teacher_logits else None,
        teacher_logits_origin=origin,
        prepare=prepare,
    )
    if not space.store.exists(f"{space.prefix}/trained.json"):
        run_training(space, job)
    trained = json.loads(space.store.read(f"{space.prefix}/trained.json"))
    curve = json.loads(space.store.read(f"{space.prefix}/loss_curve.json"))["points"]
    space.executor.nodes.update(trained["nodes"])
    space.progress(num_steps, num_steps)
    download_files(space.store, trained["files"], trained["folder"], space.out)
    return describe_model(
        space.out,
        space.output_uri(),
        initial_loss=round(trained["initial_loss"], 6),
        final_loss=round(trained["final_loss"], 6),
        num_steps=num_steps,
        tokens=num_steps * batch.num_blocks * corpus.block_tokens,
        **trained["facts"],
        **describe_lost_workers(curve, options["world_size"]),
    )


def run_training(space: StageSpace, job: TrainingJob) -> None:
    """Run the group until the trained student lies in the store."""
    with followed_progress(space, job.num_steps):
        try:
            failure = space.run_group(train_on_rank, {"job": job}, job.options["world_size"])
        except RuntimeError as error:
            raise ClusterError(
                f"training stopped: {error}",
                "the same command goes on from the newest checkpoint",
            ) from error
    if failure is not None:
        raise TrainingError(failure)


def describe_lost_workers(curve: list[dict[str, Any]], world_size: int) -> dict[str, Any]:
    """Say in how many steps fewer workers took part than the key promises; nothing where none."""
    fewer = [point["world_size"] for point in curve if point["world_size"] < world_size]
    if not fewer:
        return {}
    log.warning(
        "%d of %d steps were taken by fewer than %d workers, by %d at the least: the same blocks "
        "in each step, and a loss that is the same but for rounding; not the same bytes",
        len(fewer),
        len(curve),
        world_size,
        min(fewer),
    )
    return {"steps_with_fewer_workers": len(fewer), "fewest_workers": min(fewer)}


def shared_vocab_size(teacher: Path, student: Path) -> int | None:
    """Return how many logits of both models mean the same tokens; None where all do.

    Models of one family may pad their vocabularies to different sizes; what counts is then the
    tokenizer's own size.

    Raises:
        ValueError: they are of different tokenizers, so that no logit means the same.
    """
    if any_differ(teacher, student, "tokenizer.json"):
        tokens = load_tokenizer(teacher).get_vocab(), load_tokenizer(student).get_vocab()
        if tokens[0] != tokens[1]:
            raise ValueError(
                f"distill: teacher and student have different tokenizers ({len(tokens[0])} and "
                f"{len(tokens[1])} tokens), and the corpus is in the teacher's tokens; "
                "expected one tokenizer for both: choose a student with the teacher's"
            )
    sizes = {load_config(folder)["vocab_size"] for folder in (teacher, student)}
    return len(load_tokenizer(teacher)) if len(sizes) > 1 else None


def any_differ(first: Path, second: Path, name: str) -> bool:
    """Whether a file is missing on one side, or has other bytes there."""
    paths = [first / name, second / name]
    return not all(p.is_file() for p in paths) or len({digest_file(p) for p in paths}) > 1
