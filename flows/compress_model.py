"""The whole story: corpus -> steps -> exports -> gate -> publish.

`compress` and `inspect` tell it once: a night runs them (`compress_model`), and `plan` walks the
same lines without computing anything.
"""

import sys

from prefect import flow

from flows.make_corpus import Complete, make_corpus, read_corpus
from flows.night import Night
from flows.publish_artifact import expect_releases, gate_export, publish_artifact
from flows.publish_corpus import publish_corpus
from flows.recorded_night import run_recorded
from flows.run_record import (
    describe_run,
    expected_results,
    finished_run,
    make_report,
    write_run,
)
from tasks.distill_options import DistillOptions
from tasks.errors import CompressionError
from tasks.inputs import Inputs, find_inputs
from tasks.quality_records import Metrics
from tasks.recipe import Recipe
from tasks.records import DataRef, ModelRef, TeacherLogitsRef
from tasks.run_records import EvaluatedModel, ModelKind, RunRecord
from tasks.stages import (
    distill_stage,
    evaluate_stage,
    from_scratch,
    inspect_stage,
    prune_stage,
    quantize_stage,
    teacher_logits_stage,
    train_export_stage,
)


@flow(name="compress model", flow_run_name="{recipe.name}", persist_result=False)
def compress_model(recipe: Recipe) -> RunRecord:
    """Run a recipe to its end: a model for each export, gated, and published where it passes.

    Raises:
        NightSkipped: another night of the recipe runs on its store.
        DeadlineReached: while this one waited for its end.
    """
    models: list[EvaluatedModel] = []

    def work(night: Night) -> RunRecord:
        inputs = find_inputs(recipe, night.store)
        compress(recipe, inputs, night.complete, models)
        expect_releases(night, recipe, models)
        inspect(recipe, inputs, night.complete, models)
        return release(night, recipe, inputs, models)

    return run_recorded(recipe, models, work)


def compress(
    recipe: Recipe, inputs: Inputs, complete: Complete, models: list[EvaluatedModel]
) -> None:
    """Walk a recipe from its corpus to its evaluated exports.

    Args:
        models: Gets each model as soon as it is evaluated, the teacher first.
    """

    def evaluate(title: str, kind: ModelKind, made_by: str | None, model: ModelRef) -> ModelRef:
        stage = evaluate_stage(recipe, model, inputs.evaluation, inputs.tasks)
        metrics = complete(f"evaluate {title}", stage, Metrics)
        models.append(
            EvaluatedModel.model_construct(
                title=title, kind=kind, made_by=made_by, model=model, metrics=metrics
            )
        )
        return model

    def store_teacher(title: str, options: DistillOptions) -> TeacherLogitsRef | None:
        """Run the teacher over the corpus where a training wants to read it, not to run it."""
        if options.teacher == "online":
            return None
        stage = teacher_logits_stage(recipe, options, teacher, corpus)
        stored: TeacherLogitsRef = complete(f"teacher logits for {title}", stage, TeacherLogitsRef)
        return stored

    def train(title: str, options: DistillOptions, incoming: ModelRef) -> ModelRef:
        stored = store_teacher(title, options)
        stage = distill_stage(recipe, options, teacher, incoming, corpus, stored)
        student: ModelRef = complete(title, stage, ModelRef)
        return student

    teacher = model = evaluate("teacher", "teacher", None, inputs.teacher)
    corpus = make_corpus(recipe, inputs, teacher, complete)
    for number, step in enumerate(recipe.steps, start=1):
        if step.prune:
            title = f"{number} prune"
            stage = prune_stage(recipe, step.prune, model, inputs.calibration)
            model = evaluate(title, "prune", title, complete(title, stage, ModelRef))
        if step.distill:
            # Trainings first, then evaluations: the workers change hands once.
            title, scratch = f"{number} distill", f"{number} from scratch"
            incoming = inputs.students.get(step.distill.student, model)
            student = train(title, step.distill, incoming)
            if "from_scratch" in recipe.comparisons:
                # In the student's own shape, which an initializer may have chosen.
                kept = step.distill.initializer.name == "incoming"
                shape = incoming if kept else student
                compared = train(scratch, from_scratch(step.distill), shape)
            model = evaluate(title, "distill", title, student)
            if "from_scratch" in recipe.comparisons:
                evaluate(scratch, "comparison", scratch, compared)
    for export in recipe.exports:
        incoming = model
        if export.train:
            title = f"train {export.name}"
            stored = store_teacher(title, export.train)
            stage = train_export_stage(recipe, export, teacher, model, corpus, stored)
            incoming = complete(title, stage, ModelRef)
        made_by = f"quantize {export.name}"
        stage = quantize_stage(recipe, export, incoming, inputs.calibration)
        evaluate(export.name, "export", made_by, complete(made_by, stage, ModelRef))


def inspect(
    recipe: Recipe, inputs: Inputs, complete: Complete, models: list[EvaluatedModel]
) -> None:
    """Look into the teacher, the last student and every export, for the report.

    A model that cannot be looked into costs the report a section, never the night its end.
    """
    students = [model for model in models if model.kind in ("prune", "distill")]
    exports = [model for model in models if model.kind == "export"]
    for shown in [models[0], *students[-1:], *exports]:
        stage = inspect_stage(recipe, shown.model, inputs.evaluation)
        try:
            complete(f"inspect {shown.title}", stage, DataRef)
        except (CompressionError, OSError):
            raise  # the deadline, the store, the cluster
        except Exception as error:
            print(f"nightpress: warning: {shown.title} is not inspected: {error}", file=sys.stderr)


def release(
    night: Night, recipe: Recipe, inputs: Inputs, models: list[EvaluatedModel]
) -> RunRecord:
    """Gate every export, publish those that pass, and leave the run's record and report."""
    teacher, candidates = models[0], [model for model in models if model.kind == "export"]
    verdicts = [gate_export(night, recipe, inputs, teacher, model) for model in candidates]
    corpus = read_corpus(recipe, inputs, night.store)
    provenance = describe_run(night, recipe, inputs, corpus.corpus, teacher.metrics)
    data = provenance.data
    expected = finished_run(night, recipe, models, expected_results(verdicts), corpus, data)
    report = make_report(night, recipe, expected, provenance)
    results = [
        publish_artifact(night, recipe, inputs, teacher, verdict, provenance, report)
        for verdict in verdicts
    ]
    if recipe.corpus.publish:
        corpus = publish_corpus(night, recipe, corpus, provenance, report)
    record = finished_run(night, recipe, models, results, corpus, data)
    write_run(night, recipe, record, make_report(night, recipe, record, provenance))
    return record
