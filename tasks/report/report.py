"""The report of a run: one HTML page that needs nothing but itself."""

from __future__ import annotations

from tasks.report import change_wording, wording
from tasks.report.evidence_figures import draw_loss, draw_methods, draw_scatter
from tasks.report.front_figure import FrontPoint, draw_front
from tasks.report.importance_figure import draw_importance
from tasks.report.interval_figure import draw_check, draw_interval
from tasks.report.looks import list_components, tabulate_samples
from tasks.report.page import render_page
from tasks.report.payback import find_payback
from tasks.report.report_data import ExportOutcome, ModelRow, ReportData

WIDE, NARROW = (980, 400), (358, 340)
"""Width and height of a figure on a desk and on a phone; CSS shows the one that fits."""
ENDINGS = {
    "deadline": "The deadline came first: the next run goes on from here.",
    "cancelled": "The run was cancelled.",
    "failed": "The run failed.",
}


def write_report(data: ReportData) -> str:
    """Render the page; the same record gives the same bytes."""
    computed = [stage for stage in data.stages if stage.outcome == "computed"]
    teacher = next((row for row in data.models if row.role == "teacher"), None)
    points, limits = front_points(data, teacher), front_limits(data, teacher)
    smaller, components = list_components(data.looks)
    return render_page(
        "report.html.jinja",
        data=data,
        headline=headline(data),
        teacher=teacher,
        rows={row.title: row for row in data.models},
        facts={export.name: export_facts(export, data, teacher) for export in data.exports},
        fronts=[
            draw_front(points, data.earlier, *limits, *size, data.unit) for size in (WIDE, NARROW)
        ]
        if len(points) > 1
        else [],
        unit=data.unit,
        task_names=list(dict.fromkeys(name for row in data.models for name in row.tasks)),
        timed=[row for row in data.models if row.latency],
        change_wording=change_wording,
        smaller=smaller,
        components=components,
        samples=tabulate_samples(data.looks),
        paybacks=find_payback(data),
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
    if data.ending:
        return ENDINGS[data.ending]
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
    export: ExportOutcome, data: ReportData, teacher: ModelRow | None
) -> list[tuple[str, str]]:
    """The three numbers that matter: how much smaller, how much quality lost, how much faster."""
    row = next((r for r in data.models if r.role == "export" and r.title == export.name), None)
    if row is None or teacher is None:
        return []
    facts = [(f"{teacher.num_bytes / row.num_bytes:.1f}\N{MULTIPLICATION SIGN}", "smaller")]
    if row.nats_per_token is not None and teacher.nats_per_token is not None:
        lost = wording.signed(row.nats_per_token - teacher.nats_per_token)
        facts.append((lost, data.unit))
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
