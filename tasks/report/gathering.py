"""Gather what a run's report says: models, verdicts, comparisons, and what other files read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from tasks.evaluate.gate import paired_difference, read_evaluated
from tasks.recipe import Recipe
from tasks.report.changes import find_changes
from tasks.report.earlier_nights import format_start, list_exports, read_earlier
from tasks.report.looks import read_looks
from tasks.report.report_data import Comparison, ExportOutcome, ModelRow, ReportData
from tasks.report.stage_evidence import loss_curve, pruning_evidence
from tasks.report.wording import describe_export, nats_unit
from tasks.run_records import EvaluatedModel, ExportResult, RunRecord

if TYPE_CHECKING:
    from infra.storage import Store

FULL_BYTES = 4
"""Bytes per parameter at which the teacher and the steps count."""


def gather_report(
    store: Store, recipe: Recipe, record: RunRecord, versions: dict[str, str]
) -> ReportData:
    """Read what the stages and earlier nights left in the store, and put it beside the run's
    record."""
    made = {result.title: result for result in record.stages}
    nights = read_earlier(store, record)
    resolved = recipe.model_dump(mode="json")
    return ReportData(
        recipe_name=recipe.name,
        run_id=record.run_id,
        started=format_start(record),
        seconds=record.seconds,
        ending=record.status if record.status in ("deadline", "cancelled", "failed") else None,
        error=record.error,
        unit=nats_unit(record.models[0].metrics.protocol) if record.models else "nats/token",
        models=[model_row(model) for model in record.models],
        stages=record.stages,
        exports=[export_outcome(recipe, record, export) for export in record.exports],
        comparisons=compare(store, record.models),
        pruning=[
            evidence
            for model in record.models
            if model.kind == "prune" and (evidence := pruning_evidence(store, made, model))
        ],
        training=[
            curve
            for model in record.models
            if model.kind in ("distill", "comparison") and (curve := loss_curve(store, made, model))
        ],
        corpus=record.corpus,
        looks=read_looks(store, record),
        earlier=list_exports(nights, record),
        changes=find_changes(store, record, resolved, nights) if record.exports else None,
        cost=record.cost,
        worker_hour=recipe.cost.worker_hour,
        protocol=protocols(record.models),
        versions=versions,
        recipe_yaml=yaml.safe_dump(resolved, sort_keys=False),
    )


def model_row(evaluated: EvaluatedModel) -> ModelRow:
    model, metrics = evaluated.model, evaluated.metrics
    exported = evaluated.kind == "export"
    return ModelRow(
        title=evaluated.title,
        role="step" if evaluated.kind in ("prune", "distill") else evaluated.kind,
        num_parameters=model.num_parameters,
        num_bytes=model.num_bytes if exported else FULL_BYTES * model.num_parameters,
        nats_per_token=metrics.nats_per_token,
        perplexity=metrics.perplexity,
        tokens_per_s=metrics.tokens_per_s,
        tasks=metrics.tasks,
        task_average=metrics.task_average,
        latency=metrics.latency,
    )


def export_outcome(recipe: Recipe, record: RunRecord, result: ExportResult) -> ExportOutcome:
    (export,) = (e for e in recipe.exports if e.name == result.export)
    reference = f"{recipe.name}/{result.export}@{record.channel}"
    dest = f"./{recipe.name}-{result.export}"
    return ExportOutcome(
        name=result.export,
        outcome=result.outcome,
        description=describe_export(export.model_dump()),
        gate=result.gate,
        artifact=result.artifact,
        pull_command=f"nightpress pull {reference} {dest} --store {record.store_uri}"
        if result.gate.passed
        else None,
    )


def compare(store: Store, models: list[EvaluatedModel]) -> list[Comparison]:
    """Hold each distilled model against what it was before, and against training from scratch."""
    comparisons = []
    for index, model in enumerate(models):
        if model.kind != "distill":
            continue
        others = [next(m for m in reversed(models[:index]) if m.kind != "comparison")]
        others += [m for m in models[index + 1 : index + 2] if m.kind == "comparison"]
        for other in others:
            difference = paired_difference(
                read_evaluated(store, model.model, model.metrics),
                read_evaluated(store, other.model, other.metrics),
            )
            comparisons.append(
                Comparison(title=model.title, against=other.title, difference=difference)
            )
    return comparisons


def protocols(models: list[EvaluatedModel]) -> dict[str, str]:
    """Say how numbers were measured; a model that was measured otherwise is named."""
    first = models[0].metrics if models else None
    if first is None:
        return {}
    unit = nats_unit(first.protocol)
    said = {unit: first.protocol, "tokens/s": first.speed_protocol}
    for model in models:
        if model.metrics.protocol != first.protocol:
            said[f"{unit} of {model.title}"] = model.metrics.protocol
    said |= {f"task {name}": score.protocol for name, score in first.tasks.items()}
    return said | ({"latency": first.latency.protocol} if first.latency else {})
