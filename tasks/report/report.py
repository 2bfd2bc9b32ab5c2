"""The report of a run: one HTML page that needs nothing but itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.records import (
    ArtifactRef,
    CorpusResult,
    Difference,
    GateReport,
    Record,
    StageResult,
)
from tasks.report import wording
from tasks.report.evidence_figures import draw_loss, draw_methods, draw_scatter
from tasks.report.front_figure import FrontPoint, draw_front
from tasks.report.importance_figure import draw_importance
from tasks.report.interval_figure import draw_check, draw_interval
from tasks.report.page import render_page

WIDE, NARROW = (980, 400), (358, 340)
"""Width and height of a figure on a desk and on a phone; CSS shows the one that fits."""


class ModelRow(Record):
    """A model of the run, measured on the held-out text where it was."""

    title: str
    """An export's is the export's name."""
    role: Literal["teacher", "step", "comparison", "export"]
    num_parameters: int
    num_bytes: int
    """The teacher's and the steps' at 4 bytes per parameter, an export's on disk."""
    nats_per_token: float | None = None
    perplexity: float | None = None
    tokens_per_s: float | None = None


class ExportOutcome(Record):
    name: str
    outcome: Literal["published", "unchanged", "held", "refused", "failed"]
    description: str
    """Method, format and options, in a sentence."""
    gate: GateReport | None = None
    artifact: ArtifactRef | None = None
    pull_command: str | None = None


class Comparison(Record):
    """Held-out nats/token of one model less those of another."""

    title: str
    against: str
    difference: Difference


class PruningRound(Record):
    """What one round of a prune step left of the incoming model."""

    kept: dict[str, int]
    """Units by kind, in each layer or in the whole network."""
    chosen: str
    """Whose choice it was."""
    nats_per_token: float
    """On the calibration text, repaired."""


class PruningEvidence(Record):
    """What the sweep of one prune step learned, and how well it predicts."""

    title: str
    importance: dict[str, list[list[float]]]
    """By kind of unit: [layer][unit]."""
    kept: dict[str, list[int]]
    """By kind of unit: units kept in each layer."""
    kept_units: dict[str, list[list[int]]] = Field(default_factory=dict)
    """By kind of unit: which, in each layer."""
    removed: float | None = None
    """Fraction of the parameters that went."""
    dense_nats_per_token: float | None = None
    """On the calibration text, as the candidates'."""
    candidates: dict[str, float] = Field(default_factory=dict)
    """Nats/token of each method's cut."""
    chosen: str = ""
    """The candidate that became the step's model."""
    rounds: tuple[PruningRound, ...] = ()
    """Where there was more than one."""
    num_scored: int = 0
    """Sub-models whose utility was asked for."""
    num_left_out: int = 0
    """Of these, because their utility was no finite number."""
    predicted: tuple[float, ...] = ()
    """Utility of sub-models that the regression has not seen."""
    measured: tuple[float, ...] = ()
    kendall_tau: float | None = None
    r_squared: float | None = None


class LossCurve(Record):
    title: str
    tokens: list[int]
    """Trained on so far, at each point."""
    loss: list[float]


class ReportData(Record):
    """All that the page says; most of it may be empty where a run ended early."""

    recipe_name: str
    run_id: str
    started: str
    """As it shall read: 2026-11-20 02:00 UTC."""
    seconds: float
    """Of wall time."""
    error: str | None = None
    """What ended the run before its time."""
    reached_deadline: bool = False
    """Whether that was its deadline."""
    models: tuple[ModelRow, ...] = ()
    """In the order in which they were made, the teacher first."""
    stages: tuple[StageResult, ...] = ()
    exports: tuple[ExportOutcome, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    pruning: tuple[PruningEvidence, ...] = ()
    training: tuple[LossCurve, ...] = ()
    corpus: CorpusResult | None = None
    protocol: dict[str, str]
    """How the numbers were measured, by kind of number."""
    versions: dict[str, str]
    recipe_yaml: str


def write_report(data: ReportData) -> str:
    """Render the page; the same record gives the same bytes."""
    computed = [stage for stage in data.stages if stage.outcome == "computed"]
    teacher = next((row for row in data.models if row.role == "teacher"), None)
    points, limits = front_points(data, teacher), front_limits(data, teacher)
    return render_page(
        "report.html.jinja",
        data=data,
        headline=headline(data),
        teacher=teacher,
        rows={row.title: row for row in data.models},
        facts={export.name: export_facts(export, data.models, teacher) for export in data.exports},
        fronts=[draw_front(points, *limits, *size) for size in (WIDE, NARROW)]
        if len(points) > 1
        else [],
        longest=max(computed, key=lambda stage: stage.seconds, default=None),
        widest_s=max((stage.seconds for stage in data.stages), default=0),
        computed_s=sum(stage.seconds for stage in computed),
        stored_s=sum(s.seconds for s in data.stages if s.outcome == "cached"),
        draw_check=draw_check,
        draw_interval=draw_interval,
        draw_importance=draw_importance,
        draw_scatter=draw_scatter,
        draw_methods=draw_methods,
        draw_loss=draw_loss,
    )


def headline(data: ReportData) -> str:
    """Say how the run ended, in a few words."""
    if data.reached_deadline:
        return "The deadline came first: the next run goes on from here."
    if data.error:
        return "The run failed."
    outcomes = [export.outcome for export in data.exports]
    if outcomes and set(outcomes) == {"unchanged"}:
        return "Nothing changed: the channel serves these models already."
    said = []
    for outcome in ("published", "unchanged", "held", "refused", "failed"):
        names = [export.name for export in data.exports if export.outcome == outcome]
        if names:
            said.append(f"{outcome} {wording.join_words(names)}")
    if data.corpus and not data.exports:
        said.append(f"built a corpus of {data.corpus.corpus.num_documents:,} rows")
    text = ", ".join(said) or "no export was reached"
    return f"{text[:1].upper()}{text[1:]}."


def export_facts(
    export: ExportOutcome, models: tuple[ModelRow, ...], teacher: ModelRow | None
) -> list[tuple[str, str]]:
    """The three numbers that matter: how much smaller, how much quality lost, how much faster."""
    row = next((r for r in models if r.role == "export" and r.title == export.name), None)
    if row is None or teacher is None:
        return []
    facts = [(f"{teacher.num_bytes / row.num_bytes:.1f}\N{MULTIPLICATION SIGN}", "smaller")]
    if row.nats_per_token is not None and teacher.nats_per_token is not None:
        lost = wording.signed(row.nats_per_token - teacher.nats_per_token)
        facts.append((lost, "nats/token"))
    if row.tokens_per_s and teacher.tokens_per_s:
        speed = row.tokens_per_s / teacher.tokens_per_s
        facts.append((f"{speed:.2f}\N{MULTIPLICATION SIGN}", "prefill speed"))
    return facts


def front_points(data: ReportData, teacher: ModelRow | None) -> list[FrontPoint]:
    outcomes = {export.name: export.outcome for export in data.exports}
    differences = {
        export.name: check.difference
        for export in data.exports
        for check in (export.gate.checks if export.gate else [])
        if check.name == "teacher.max_nats_increase"
    }
    points = []
    for row in data.models:
        if row.nats_per_token is None:
            continue
        kind: str = row.role
        if row.role == "export":
            refused = outcomes.get(row.title) in ("refused", "failed")
            kind = "refused" if refused else "passed"
        between = differences.get(row.title) if row.role == "export" else None
        base = teacher.nats_per_token if teacher else None
        ends = (base + between.lower, base + between.upper) if between and base else None
        points.append(FrontPoint(row.title, kind, row.num_bytes, row.nats_per_token, ends))
    return points


def front_limits(data: ReportData, teacher: ModelRow | None) -> tuple[float | None, float | None]:
    """The gate's limits against the teacher, as nats/token and as bytes."""
    checks = {
        check.name: check.limit
        for export in data.exports
        for check in (export.gate.checks if export.gate else [])
    }
    nats, ratio = checks.get("teacher.max_nats_increase"), checks.get("teacher.max_bytes_ratio")
    if teacher is None:
        return None, None
    above = (
        None if nats is None or teacher.nats_per_token is None else teacher.nats_per_token + nats
    )
    return above, None if ratio is None else teacher.num_bytes * ratio
