"""Gather what a run's report says: models, verdicts, comparisons, and the stages' evidence."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import yaml

from tasks.evaluate.gate import paired_difference, read_evaluated
from tasks.recipe import Recipe
from tasks.records import EvaluatedModel, ExportResult, RunRecord, StageResult
from tasks.report.report import (
    Comparison,
    ExportOutcome,
    LossCurve,
    ModelRow,
    PruningEvidence,
    PruningRound,
    ReportData,
)
from tasks.report.wording import describe_export

if TYPE_CHECKING:
    from infra.storage import Store

FULL_BYTES = 4
"""Bytes per parameter at which the teacher and the steps count."""


def gather_report(
    store: Store, recipe: Recipe, record: RunRecord, versions: dict[str, str]
) -> ReportData:
    """Read what the stages left in the store and put it beside the run's record."""
    made = {result.title: result for result in record.stages}
    return ReportData(
        recipe_name=recipe.name,
        run_id=record.run_id,
        started=f"{datetime.fromisoformat(record.started):%Y-%m-%d %H:%M} UTC",
        seconds=record.seconds,
        error=record.error,
        reached_deadline=record.status == "deadline",
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
        protocol=protocols(record.models),
        versions=versions,
        recipe_yaml=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
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


def read_evidence(
    store: Store, made: dict[str, StageResult], model: EvaluatedModel, name: str
) -> Any:
    """Read a JSON file that a model's stage left beside its output; None where there is none."""
    stage = made[model.made_by or ""]
    try:
        return json.loads(store.read(f"stages/{stage.stage}/{stage.key}/{name}"))
    except FileNotFoundError:
        return None


def pruning_evidence(
    store: Store, made: dict[str, StageResult], model: EvaluatedModel
) -> PruningEvidence | None:
    found = read_evidence(store, made, model, "evidence.json")
    if found is None:
        return None
    return describe_pruning(model.title, found)


def describe_pruning(title: str, evidence: dict[str, Any]) -> PruningEvidence:
    """Take from a prune stage's evidence what the report shows."""
    known = {name: evidence[name] for name in PruningEvidence.model_fields if name in evidence}
    nats = {name: cut["nats_per_token"] for name, cut in evidence["candidates"].items()}
    removed = evidence["sparsity"]["got"].get("all")
    rounds = [
        {name: told[name] for name in PruningRound.model_fields}
        for told in evidence.get("rounds", ())
    ]
    return PruningEvidence.model_validate(
        known | {"title": title, "candidates": nats, "removed": removed, "rounds": rounds}
    )


def loss_curve(
    store: Store, made: dict[str, StageResult], model: EvaluatedModel
) -> LossCurve | None:
    found = read_evidence(store, made, model, "loss_curve.json")
    if found is None:
        return None
    facts, points = model.model.facts, found["points"]
    tokens_per_step = int(facts["tokens"]) // int(facts["num_steps"])
    return LossCurve(
        title=model.title,
        tokens=[(index + 1) * tokens_per_step for index in range(len(points))],
        loss=[point["loss"] for point in points],
    )


def protocols(models: list[EvaluatedModel]) -> dict[str, str]:
    """Say how numbers were measured; a model that was measured otherwise is named."""
    first = models[0].metrics if models else None
    if first is None:
        return {}
    said = {"nats/token": first.protocol, "tokens/s": first.speed_protocol}
    for model in models:
        if model.metrics.protocol != first.protocol:
            said[f"nats/token of {model.title}"] = model.metrics.protocol
    return said
