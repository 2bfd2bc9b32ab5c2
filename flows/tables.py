"""What commands print on stdout for people; `--json` is for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tasks.report.wording import describe_check, format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from flows.planning import Plan
    from infra.findings import Finding
    from tasks.publish.garbage import Garbage
    from tasks.publish.manifest import Manifest
    from tasks.publish.references import Listing
    from tasks.records import Metrics, RunRecord

PIPE_WIDTH = 120
"""Columns where stdout is no terminal."""


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_run(record: RunRecord) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for name in (
        "parameters",
        "bytes",
        "nats/token",
        "perplexity",
        "tokens/s",
        "seconds",
        "peak memory",
    ):
        table.add_column(name, justify="right")
    table.add_column("")
    made = {stage.title: stage for stage in record.stages}
    for row in record.models:
        stage = made.get(row.made_by or "")
        table.add_row(
            row.title,
            f"{row.model.num_parameters:,}",
            f"{row.model.num_bytes:,}",
            f"{row.metrics.nats_per_token:.4f}",
            f"{row.metrics.perplexity:.2f}",
            f"{row.metrics.tokens_per_s:,.0f}",
            f"{stage.seconds:.1f}" if stage else "",
            format_bytes(stage.peak_bytes) if stage and stage.peak_bytes else "",
            stage.outcome if stage else "given",
        )
    out.print(table)
    out.print()
    for export in record.exports:
        passed = f"passed the gate, {export.outcome}"
        verdict = passed if export.gate.passed else "REFUSED by the gate"
        out.print(f"{export.export}: {verdict}", soft_wrap=True)
        for check in export.gate.checks:
            mark = "ok" if check.passed else "no"
            out.print(f"  {mark}  {check.name}: {describe_check(check)}", soft_wrap=True)
            if check.reason:
                out.print(f"      {check.reason}", soft_wrap=True)
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
    computed = sum(stage.outcome == "computed" for stage in record.stages)
    stored = len(record.stages) - computed
    out.print(
        f"\n{record.status} in {format_seconds(record.seconds)}: {computed} of "
        f"{len(record.stages)} stages computed" + (f", {stored} stored before" if stored else ""),
        soft_wrap=True,
    )
    out.print(f"report: {report_place(record)}", soft_wrap=True)


def report_place(record: RunRecord) -> str:
    """Where the HTML report is: a path that a browser opens, or the object's URI."""
    return f"{record.store_uri}/runs/{record.recipe}/{record.run_id}/report.html"


def print_plan(plan: Plan) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("")
    table.add_column("time", justify="right")
    table.add_column("memory a worker", justify="right")
    table.add_column("")
    for stage in plan.stages:
        spent = "" if stage.seconds is None else format_seconds(stage.seconds)
        about = "" if stage.outcome == "cached" or not spent else "about "
        held = "" if stage.peak_bytes is None else format_bytes(stage.peak_bytes)
        nearly = "" if stage.outcome == "cached" or not held else "about "
        table.add_row(stage.title, stage.outcome, about + spent, nearly + held, stage.note)
    out.print(table)
    out.print(f"\nto compute: about {format_seconds(plan.seconds_to_compute)}, by arithmetic alone")
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
    out.print(f"{metrics.nats_per_token:.4f} nats/token, perplexity {metrics.perplexity:.2f}")
    out.print(f"{metrics.num_tokens:,} tokens of {metrics.num_documents:,} documents")
    out.print(f"{metrics.tokens_per_s:,.0f} tokens/s ({metrics.speed_protocol})", soft_wrap=True)
    out.print(f"protocol: {metrics.protocol}", soft_wrap=True)


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


def print_runs(records: list[RunRecord]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("run", "started", "status", "time", "exports"):
        table.add_column(name)
    for record in records:
        exports = ", ".join(f"{e.export} {e.outcome}" for e in record.exports)
        table.add_row(
            record.run_id,
            record.started,
            record.status,
            format_seconds(record.seconds),
            exports or (record.error or ("corpus" if record.corpus else " ")).splitlines()[0],
        )
    console().print(table if records else "no runs")


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
