"""What prune and distill stages left beside their models, for the report to show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tasks.report.report_data import LossCurve, PruningEvidence, PruningRound
from tasks.run_records import EvaluatedModel, StageResult

if TYPE_CHECKING:
    from infra.storage import Store


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
