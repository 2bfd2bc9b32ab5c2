"""What a recipe's earlier nights came to, read from `runs/`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tasks.publish.run_history import readable_runs
from tasks.report.report_data import EarlierExport
from tasks.run_records import EvaluatedModel, RunRecord

if TYPE_CHECKING:
    from infra.storage import Store


def read_earlier(store: Store, record: RunRecord) -> list[RunRecord]:
    """Return the records of a recipe's other nights, the newest first.

    One that this version cannot read is left out: a report does not fail a night.
    """
    nights = readable_runs(store, record.recipe)
    return [night for night in nights if night.run_id != record.run_id]


def list_exports(nights: list[RunRecord], record: RunRecord) -> list[EarlierExport]:
    """Return each export that passed its gate in an earlier night, once, and not those of this one;
    only where it was scored on this night's text."""
    texts = {name_text(model) for model in record.models}
    seen = {model.model.digest for model in record.models}
    found = []
    for night in nights:
        passed = {export.export for export in night.exports if export.gate.passed}
        for model in night.models:
            is_new = model.kind == "export" and model.model.digest not in seen
            if is_new and model.title in passed and name_text(model) in texts:
                seen.add(model.model.digest)
                found.append(
                    EarlierExport(
                        title=model.title,
                        started=format_start(night),
                        num_bytes=model.model.num_bytes,
                        nats_per_token=model.metrics.nats_per_token,
                    )
                )
    return found


def name_text(model: EvaluatedModel) -> str:
    """Return the part of a protocol that two models must share: all but dtype and device."""
    return model.metrics.protocol.rpartition(", ")[0]


def format_start(night: RunRecord) -> str:
    return f"{datetime.fromisoformat(night.started):%Y-%m-%d %H:%M} UTC"
