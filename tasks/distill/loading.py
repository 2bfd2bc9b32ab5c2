"""Both models as they are trained: loaded, told what to show, and put under DeepSpeed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tasks.distill.adapters import make_trainable
from tasks.distill.blocks import Blocks
from tasks.distill.deepspeed_config import Batch
from tasks.distill.engine import partition, start_engine
from tasks.distill.heads import check_heads
from tasks.distill.job import TrainingJob
from tasks.distill.layers import make_projection, map_layers
from tasks.distill.objective import Objective, build_objective
from tasks.distill.student_loss import StudentLoss
from tasks.distill.teacher_logits.reader import open_teacher_logits
from tasks.distill.teacher_logits.teaching import show_stored
from tasks.distill.teaching import OnlineTeacher, Teacher, no_teacher
from tasks.models.checkpoint import load_model, read_model
from tasks.models.initializer_context import InitializerContext, Student
from tasks.plugins import load_plugin

log = logging.getLogger(__name__)

Facts = dict[str, str | int | float]


@dataclass(frozen=True)
class Models:
    engine: Any
    """DeepSpeed's, around the student and its losses."""
    teacher: Teacher
    objective: Objective
    facts: Facts
    """For the stage's record: what was done to the student before it was trained."""
    reload: Callable[[], Any]
    """Makes the student as it was initialised."""

    @property
    def student(self) -> Any:
        return self.engine.module.student


def load_models(job: TrainingJob, batch: Batch, blocks: Blocks) -> Models:
    """Load the teacher, initialise the student, and put the student under DeepSpeed.

    Raises:
        ValueError: a loss looks at what a model does not have.
    """
    options, objective = job.options, build_objective(job.options["losses"])
    student, facts = initialize(job, blocks)
    facts |= make_trainable(student, options["trainable"], options["seed"])
    if job.prepare:
        job.prepare(student)
    show_attentions(student, objective)
    still_attention(student, objective)
    teacher: Teacher = no_teacher
    layer_map: list[int] = []
    projection = None
    if job.teacher_uri:
        model = load_teacher(job)
        check_heads(student.config, model.config)
        show_attentions(model, objective)
        teacher = online = OnlineTeacher(model, objective)
        if objective.outputs():
            layer_map = map_layers(student.config.num_hidden_layers, online.num_layers)
            facts |= describe_layers(layer_map, online.num_layers)
        if objective.over("hidden_states"):
            own, other = (m.config.get_text_config().hidden_size for m in (student, model))
            projection = make_projection(own, other, options["seed"])
        if options["zero_stage"] == 3:
            online.module = partition(online.module, options, batch)
    elif job.teacher_logits_uri:
        teacher = open_teacher(job)
    if options["activation_checkpointing"]:
        student.activation_checkpointing_enable()
    trained = StudentLoss(student, objective, projection, layer_map, job.vocab_size)
    engine = start_engine(trained.train(), options, batch)
    return Models(
        engine=engine,
        teacher=teacher,
        objective=objective,
        facts=facts,
        reload=lambda: initialize(job, blocks).model,
    )


def initialize(job: TrainingJob, blocks: Blocks) -> Student:
    """Return the student before it is trained, on this rank's device, in float32."""
    chosen, options = job.options["initializer"], job.options
    context = InitializerContext(
        folder=job.localize(job.student_uri),
        ids_BT=blocks.ids,
        seed=options["seed"],
        trust_remote_code=options["trust_remote_code"],
    )
    student: Student = load_plugin("initializer", chosen["name"])(context, **chosen["options"])
    return student


def load_teacher(job: TrainingJob) -> Any:
    """Return the teacher in evaluation mode: on this rank's device, or, where ZeRO-3 will
    partition it, in the host's memory, since a device alone may not hold it."""
    assert job.teacher_uri
    folder, options = job.localize(job.teacher_uri), job.options
    trusted = options["trust_remote_code"]
    if options["zero_stage"] == 3:
        import torch

        return read_model(folder, getattr(torch, options["dtype"]), trusted).eval()
    return load_model(folder, options["dtype"], trusted, spread=False)


def open_teacher(job: TrainingJob) -> Teacher:
    """Return the teacher as it was stored.

    Raises:
        CheckpointError: what is stored is of another teacher, tokenizer or corpus.
    """
    assert job.teacher_logits_uri and job.teacher_logits_origin
    folder = job.localize(job.teacher_logits_uri)
    return partial(show_stored, open_teacher_logits(folder, job.teacher_logits_origin))


def show_attentions(model: Any, objective: Objective) -> None:
    """Let a model compute its attention maps as matrices, which fused attention never holds."""
    if objective.over("attentions"):
        model.set_attn_implementation("eager")


def still_attention(student: Any, objective: Objective) -> None:
    """Switch off dropout inside attention where its maps are held against the teacher's: a map
    with holes would be compared, at a divergence that no training lowers.

    Encoders keep it in a module of their attention; decoders hardly have any.
    """
    if objective.over("attentions"):
        for module in student.modules():
            inside = getattr(module, "dropout", None)
            if type(module).__name__.endswith("SelfAttention") and isinstance(inside, nn.Dropout):
                inside.p = 0.0


def describe_layers(layer_map: list[int], num_teacher: int) -> Facts:
    """Say which of the teacher's layers each of the student's is held against, from 0."""
    pairs = " ".join(f"{own}:{other}" for own, other in enumerate(layer_map))
    log.info("student layer : teacher layer (of %d) %s", num_teacher, pairs)
    return {"layer_map": pairs}
