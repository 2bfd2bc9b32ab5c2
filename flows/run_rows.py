"""A run's record as rows of text: the terminal's tables and Prefect's are made of the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.report.wording import describe_check, format_bytes, format_seconds

if TYPE_CHECKING:
    from tasks.run_records import ExportResult, RunRecord

Row = dict[str, str]
"""Cells by column; every row of a table has all of them."""


def model_rows(record: RunRecord) -> list[Row]:
    """Say of each model how large, how good and how fast it is, and what making it took."""
    made = {stage.title: stage for stage in record.stages}
    rows = []
    for row in record.models:
        stage = made.get(row.made_by or "")
        rows.append(
            {
                "model": row.title,
                "parameters": f"{row.model.num_parameters:,}",
                "bytes": f"{row.model.num_bytes:,}",
                "nats/token": f"{row.metrics.nats_per_token:.4f}",
                "perplexity": f"{row.metrics.perplexity:.2f}",
                **{name: f"{task.score:.4f}" for name, task in row.metrics.tasks.items()},
                "tokens/s": f"{row.metrics.tokens_per_s:,.0f}",
                "seconds": f"{stage.seconds:.1f}" if stage else "",
                "peak memory": format_bytes(stage.peak_bytes) if stage and stage.peak_bytes else "",
                "outcome": stage.outcome if stage else "given",
            }
        )
    return rows


def gate_rows(export: ExportResult) -> list[Row]:
    """Hold an export's figures against the gate's limits."""
    return [
        {
            "export": export.export,
            "limit": check.name,
            "evidence": describe_check(check),
            "passed": "ok" if check.passed else "no",
            "reason": check.reason or "",
        }
        for check in export.gate.checks
    ]


def stage_rows(record: RunRecord) -> list[Row]:
    """Say of each stage whether it was stored, and what computing it took, whenever that was."""
    return [
        {
            "stage": stage.title,
            "outcome": stage.outcome,
            "seconds": f"{stage.seconds:.1f}",
            "peak memory": format_bytes(stage.peak_bytes) if stage.peak_bytes else "",
            "nodes": ", ".join(stage.nodes),
        }
        for stage in record.stages
    ]


def summarize_run(record: RunRecord) -> str:
    """Say in one line how a run ended, how long it took, and what was stored before."""
    computed = sum(stage.outcome == "computed" for stage in record.stages)
    stored = len(record.stages) - computed
    return (
        f"{record.status} in {format_seconds(record.seconds)}: {computed} of "
        f"{len(record.stages)} stages computed" + (f", {stored} stored before" if stored else "")
    )


def report_place(record: RunRecord) -> str:
    """Where the HTML report is: a path that a browser opens, or the object's URI."""
    return f"{record.store_uri}/runs/{record.recipe}/{record.run_id}/report.html"
