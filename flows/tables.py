"""What commands print on stdout for people; `--json` is for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.run_rows import gate_rows, model_rows, report_place, summarize_run
from tasks.report.wording import describe_check, format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from flows.planning import Plan
    from flows.run_rows import Row
    from infra.findings import Finding
    from tasks.publish.garbage import Garbage
    from tasks.publish.listing import Listing
    from tasks.publish.manifest import Manifest
    from tasks.publish.run_history import UnfinishedRun
    from tasks.quality_records import Metrics
    from tasks.run_records import RunRecord

PIPE_WIDTH = 120
"""Columns where stdout is no terminal."""


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_run(record: RunRecord) -> None:
    out = console()
    out.print(as_table(model_rows(record), left=("model", "outcome")))
    out.print()
    for export in record.exports:
        passed = f"passed the gate, {export.outcome}"
        verdict = passed if export.gate.passed else "REFUSED by the gate"
        out.print(f"{export.export}: {verdict}", soft_wrap=True)
        for check in gate_rows(export):
            out.print(f"  {check['passed']}  {check['limit']}: {check['evidence']}", soft_wrap=True)
            if check["reason"]:
                out.print(f"      {check['reason']}", soft_wrap=True)
        if export.artifact:
            out.print(f"  at  {export.artifact.uri}", soft_wrap=True)
            out.print(
                f"  nightpress pull {record.recipe}/{export.export}@{record.channel} "
                f"./{record.recipe}-{export.export}",
                soft_wrap=True,
            )
    if record.corpus and (published := record.corpus.published):
        out.print(f"corpus: {published.outcome}", soft_wrap=True)
        out.print(f"  at  {published.uri}", soft_wrap=True)
    out.print(f"\n{summarize_run(record)}", soft_wrap=True)
    out.print(f"report: {report_place(record)}", soft_wrap=True)


def as_table(rows: list[Row], left: tuple[str, ...]) -> Table:
    """Args: left: Columns of words; the others hold numbers, which end in line."""
    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


def print_plan(plan: Plan) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("")
    table.add_column("time", justify="right")
    table.add_column("from")
    table.add_column("memory a worker", justify="right")
    table.add_column("")
    for stage in plan.stages:
        spent = "" if stage.seconds is None else format_seconds(stage.seconds)
        about = "" if stage.basis in ("stored", "nothing") else "about "
        held = "" if stage.peak_bytes is None else format_bytes(stage.peak_bytes)
        nearly = "" if stage.outcome == "cached" or not held else "about "
        foreseen = (stage.title, stage.outcome, about + spent, stage.basis, nearly + held)
        table.add_row(*foreseen, stage.note)
    out.print(table)
    price = "" if plan.price is None else f", {plan.price:,.2f} {plan.currency}"
    spent = format_seconds(plan.seconds_to_compute)
    out.print(f"\nto compute on {plan.cluster}: about {spent}{price}")
    if unknown := [stage.title for stage in plan.stages if stage.seconds is None]:
        out.print(f"not counted, since nothing tells their time: {', '.join(unknown)}")
    out.print("\nweights of the teacher")
    sizes = Table(box=None, pad_edge=False)
    for name in ("bits", "bytes", "smallest GPU"):
        sizes.add_column(name, justify="right")
    for row in plan.weights:
        gpu = f"{row.smallest_gpu_gb} GB" if row.smallest_gpu_gb else "none alone"
        sizes.add_row(str(row.bits), format_bytes(row.num_bytes), gpu)
    out.print(sizes)


def print_findings(findings: list[Finding]) -> None:
    out = console()
    for finding in findings:
        out.print(f"{finding.level:<8} {finding.name}: {finding.message}", soft_wrap=True)
        if finding.remedy:
            out.print(f"{'':<8} -> {finding.remedy}", soft_wrap=True)
    errors = sum(finding.level == "error" for finding in findings)
    out.print(f"\n{errors} error(s) in {len(findings)} checks" if errors else "\nready")


def print_metrics(metrics: Metrics) -> None:
    out = console()
    unit, item = ("row", "rows") if "nats/row" in metrics.protocol else ("token", "tokens")
    out.print(f"{metrics.nats_per_token:.4f} nats/{unit}, perplexity {metrics.perplexity:.2f}")
    out.print(f"{metrics.num_tokens:,} {item} of {metrics.num_documents:,} documents")
    out.print(f"{metrics.tokens_per_s:,.0f} tokens/s ({metrics.speed_protocol})", soft_wrap=True)
    out.print(f"protocol: {metrics.protocol}", soft_wrap=True)
    for name, task in metrics.tasks.items():
        scores = ", ".join(f"{metric} {score:.4f}" for metric, score in task.scores.items())
        out.print(f"{name}: {scores}, {task.num_items:,} items", soft_wrap=True)
        out.print(f"  protocol: {task.protocol}", soft_wrap=True)


def print_artifacts(artifacts: list[Listing]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("artifact", "sha256", "served on", "created"):
        table.add_column(name)
    for name in ("parameters", "bytes", "nats/token", "rows"):
        table.add_column(name, justify="right")
    for artifact in artifacts:
        table.add_row(
            f"{artifact.recipe}/{artifact.export}",
            artifact.digest[:12],
            ", ".join(artifact.channels),
            artifact.created,
            "" if artifact.num_parameters is None else format_count(artifact.num_parameters),
            format_bytes(artifact.num_bytes),
            "" if artifact.nats_per_token is None else f"{artifact.nats_per_token:.4f}",
            "" if artifact.num_rows is None else format_count(artifact.num_rows),
        )
    console().print(table if artifacts else "no artifacts")


def print_runs(records: list[RunRecord], unfinished: list[UnfinishedRun]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("run", "started", "status", "time", "exports"):
        table.add_column(name)
    rows: list[tuple[str, ...]] = [
        (run.run_id, run.started, run.status, "", " ") for run in unfinished
    ]
    for record in records:
        exports = ", ".join(f"{e.export} {e.outcome}" for e in record.exports)
        told = exports or (record.error or ("corpus" if record.corpus else " ")).splitlines()[0]
        seconds = format_seconds(record.seconds)
        rows.append((record.run_id, record.started, record.status, seconds, told))
    for row in sorted(rows, reverse=True):  # a run's id begins with its time
        table.add_row(*row)
    console().print(table)


def print_garbage(garbage: Garbage) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("deleted" if garbage.deleted else "would delete", no_wrap=True)
    for name in ("bytes", "objects"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for folder in garbage.folders:
        kind, *names, digest = folder.prefix.split("/")
        name = "/".join([kind, *names, digest[:12]])
        size = format_bytes(folder.num_bytes)
        table.add_row(name, size, f"{folder.num_objects:,}", folder.why)
    if garbage.folders:
        out.print(table)
    verb = "deleted" if garbage.deleted else "to delete, with --delete"
    out.print(
        f"{format_bytes(garbage.num_bytes)} in {len(garbage.folders)} folders and "
        f"{garbage.num_uploads} dangling uploads {verb}; {garbage.num_kept_artifacts} artifacts "
        f"and {garbage.num_kept_stages} stages stay",
        soft_wrap=True,
    )
    for note in garbage.notes:
        out.print(note, soft_wrap=True)


def print_manifest(manifest: Manifest) -> None:
    out = console()
    out.print(f"{manifest.recipe_name}/{manifest.export}@sha256:{manifest.digest[:12]}")
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "architecture": manifest.architecture,
        "parameters": f"{manifest.num_parameters:,}",
        "bytes": f"{manifest.num_bytes:,}",
        "nats/token": f"{manifest.metrics.nats_per_token:.4f}",
        "perplexity": f"{manifest.metrics.perplexity:.2f}",
        "protocol": manifest.metrics.protocol,
        "created": manifest.provenance.created,
        "teacher": manifest.provenance.teacher.digest[:12],
        "parent": manifest.parent[:12] if manifest.parent else "none",
        "licence": manifest.provenance.licence.name or "not stated",
    }
    for name, value in manifest.facts.items():
        rows[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)
    for check in manifest.gate.checks:
        out.print(f"gate {check.name}: {describe_check(check)}", soft_wrap=True)
    for note in manifest.gate.notes:
        out.print(f"gate: {note}", soft_wrap=True)
