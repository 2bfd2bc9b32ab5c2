"""After how many served tokens a night has paid for itself."""

from __future__ import annotations

from typing import NamedTuple

from tasks.report.report_data import ReportData

SECONDS_PER_HOUR = 3600


class Payback(NamedTuple):
    export: str
    num_tokens: float | None
    """Served by the export in the teacher's place; None where it is no faster, and never pays."""


def find_payback(data: ReportData) -> list[Payback]:
    """Divide the night's price by what each token costs less than the teacher's.

    A token costs worker_hour / (3600 tokens_per_s): one worker of the same price serves either
    model at its measured prefill speed. Nothing is said without prices and speeds.
    """
    rows = {row.role: row for row in data.models if row.role == "teacher"}
    teacher_speed = rows["teacher"].tokens_per_s if rows else None
    if data.cost is None or not data.cost.price or not data.worker_hour or not teacher_speed:
        return []
    found = []
    for row in data.models:
        if row.role == "export" and row.tokens_per_s:
            per_second = data.worker_hour / SECONDS_PER_HOUR
            saved = per_second / teacher_speed - per_second / row.tokens_per_s
            found.append(Payback(row.title, data.cost.price / saved if saved > 0 else None))
    return found
