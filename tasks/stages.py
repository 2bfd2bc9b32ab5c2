"""Every stage of a recipe, as data: what runs, with which options, on which records.

A table of contents. Building a stage imports nothing heavy, so `plan` and a run whose every key
is a hit never import torch or Ray. What says where, when or for whom (cluster, publish) stays out.
"""

from collections.abc import Mapping
from dataclasses import replace

from tasks.code_version import library_version
from tasks.distill_options import DistillOptions, needs_a_teacher
from tasks.evaluation_options import LmEvalTask
from tasks.outside_code import is_outside, source_digest
from tasks.plugins import plugin_names
from tasks.prune_options import PruneOptions
from tasks.recipe import Export, Recipe
from tasks.records import CorpusRef, DataRef, ModelRef, TeacherLogitsRef, TextRef
from tasks.stage import Stage


def device_kind(recipe: Recipe) -> str:
    return "cuda" if recipe.cluster.gpus_per_worker else "cpu"


def prune_stage(
    recipe: Recipe, options: PruneOptions, model: ModelRef, calibration: TextRef
) -> Stage:
    utility = options.utility
    timed = options.budget is not None and options.budget.latency_ms is not None
    # A time is one machine's, so where it is measured enters the key.
    where = {"device": device_kind(recipe), "threads": recipe.cluster.threads_per_worker}
    code = {"utility_code": source_digest(utility)} if is_outside(utility) else {}
    return Stage(
        name="prune",
        entry="tasks.prune.pruning:prune",
        options=options.model_dump()
        | {
            "seed": recipe.seed,
            "alignment": recipe.alignment,
            "num_windows": recipe.calibration.num_windows,
            "window": recipe.calibration.window,
            "trust_remote_code": recipe.teacher.trust_remote_code,
        }
        | code
        | (where if timed else {}),
        inputs={"model": model, "calibration": calibration},
        plugins=(
            ("criterion", options.criterion.name),
            *(() if is_outside(utility) else (("utility", utility),)),
        ),
        execution={"offload": recipe.cluster.offload},
    )


def teacher_logits_stage(
    recipe: Recipe, options: DistillOptions, teacher: ModelRef, corpus: CorpusRef
) -> Stage:
    """The teacher's distributions over the corpus, whatever student reads them."""
    return Stage(
        name="teacher_logits",
        entry="tasks.distill.teacher_logits.storing:store_teacher_logits",
        options={
            "k": options.stored_k,
            "device": device_kind(recipe),
            "trust_remote_code": recipe.teacher.trust_remote_code,
        },
        inputs={"teacher": teacher, "corpus": corpus},
    )


def distill_stage(
    recipe: Recipe,
    options: DistillOptions,
    teacher: ModelRef,
    student: ModelRef,
    corpus: CorpusRef,
    teacher_logits: TeacherLogitsRef | None = None,
) -> Stage:
    own = [loss.name for loss in options.losses if is_outside(loss.name)]
    code = {"loss_code": [source_digest(name) for name in own]} if own else {}
    return Stage(
        name="distill",
        entry="tasks.distill.distillation:distill",
        options=options.model_dump(exclude={"student"})
        | code
        | {
            "seed": recipe.seed,
            # Floating-point sums depend on these, so training's key does, too.
            "world_size": recipe.cluster.workers,
            "threads": recipe.cluster.threads_per_worker,
            "device": device_kind(recipe),
            "trust_remote_code": recipe.teacher.trust_remote_code,
        },
        inputs={
            "teacher": teacher,
            "student": student,
            "corpus": corpus,
            **({"teacher_logits": teacher_logits} if teacher_logits else {}),
        },
        plugins=(
            *(("loss", loss.name) for loss in options.losses if loss.name not in own),
            ("initializer", options.initializer.name),
        ),
    )


def from_scratch(options: DistillOptions) -> DistillOptions:
    """The same training of a freshly initialised student on the corpus alone, without a teacher.

    Its loss is the first of the training's that needs none, or cross-entropy.
    """
    alone = (loss.name for loss in options.losses if not needs_a_teacher(loss.name))
    return DistillOptions(
        **options.model_dump(exclude={"losses", "initializer", "trainable", "teacher", "stored_k"}),
        losses=[{"name": next(alone, "cross_entropy"), "weight": 1.0}],
        initializer={"name": "fresh"},
    )


def train_export_stage(
    recipe: Recipe,
    export: Export,
    teacher: ModelRef,
    student: ModelRef,
    corpus: CorpusRef,
    teacher_logits: TeacherLogitsRef | None = None,
) -> Stage:
    """The export's own training, through the rounding that the export will meet."""
    assert export.train
    stage = distill_stage(recipe, export.train, teacher, student, corpus, teacher_logits)
    rounding = {"method": export.method, "options": export.options, "dtype": export.dtype}
    return replace(
        stage,
        entry="tasks.distill.rounded_distillation:distill_rounded",
        options=stage.options | {"rounding": rounding},
        plugins=(*stage.plugins, ("method", export.method)),
    )


def quantize_stage(recipe: Recipe, export: Export, model: ModelRef, calibration: TextRef) -> Stage:
    return Stage(
        name="quantize",
        entry="tasks.quantize.quantization:quantize_model",
        options={
            "method": export.method,
            "method_options": export.options,
            "format": export.format,
            "format_options": export.format_options,
            "mixed_precision": export.mixed_precision and export.mixed_precision.model_dump(),
            "dtype": export.dtype,
            "num_windows": recipe.calibration.num_windows,
            "window": recipe.calibration.window,
            "trust_remote_code": recipe.teacher.trust_remote_code,
        },
        inputs={"model": model, "calibration": calibration},
        plugins=(("method", export.method), ("format", export.format)),
    )


def evaluate_stage(
    recipe: Recipe, model: ModelRef, text: TextRef, tasks: Mapping[str, TextRef | DataRef]
) -> Stage:
    """A model's held-out loss, its scores on the recipe's tasks, and its speed.

    Args:
        tasks: What the tasks read, by their names.
    """
    asked = recipe.evaluation.tasks
    uses_harness = any(isinstance(task, LmEvalTask) for task in asked)
    harness = {"lm_eval": library_version("lm-eval")} if uses_harness else {}
    return Stage(
        name="evaluate",
        entry="tasks.evaluate.evaluation:evaluate_model",
        options={
            "window": recipe.evaluation.window,
            "stride": recipe.evaluation.stride or recipe.evaluation.window,
            "tasks": [task.model_dump(exclude={"data", "include"}) for task in asked],
            "latency": recipe.evaluation.latency and recipe.evaluation.latency.model_dump(),
            "device": device_kind(recipe),
            "trust_remote_code": recipe.teacher.trust_remote_code,
        }
        | harness,
        inputs={"model": model, "text": text}
        | {f"task {name}": found for name, found in tasks.items()},
        # An export may be in any of them; they are found by name when it is loaded.
        plugins=tuple(("encoding", name) for name in plugin_names("encoding")),
    )


def inspect_stage(recipe: Recipe, model: ModelRef, text: TextRef) -> Stage:
    """What the report shows of a model beside its figures: its components and what it writes."""
    return Stage(
        name="inspect",
        entry="tasks.evaluate.inspection:inspect_model",
        options={
            "window": recipe.evaluation.window,
            "temperatures": temperatures(recipe),
            "seed": recipe.seed,
            "device": device_kind(recipe),
            "trust_remote_code": recipe.teacher.trust_remote_code,
        },
        inputs={"model": model, "text": text},
        plugins=tuple(("encoding", name) for name in plugin_names("encoding")),
    )


def temperatures(recipe: Recipe) -> list[float]:
    """Return 1, and those at which students learn from the teacher."""
    trainings = [step.distill for step in recipe.steps] + [
        export.train for export in recipe.exports
    ]
    losses = [loss for training in trainings if training for loss in training.losses]
    named = {float(loss.options.get("temperature", 1.0)) for loss in losses}
    return [1.0, *sorted(named - {1.0})]
