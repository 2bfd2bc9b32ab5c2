"""What stands in the report's place where it cannot be drawn: the record as it is."""

from __future__ import annotations

from html import escape

from tasks.run_records import RunRecord


def write_plain_report(record: RunRecord, reason: str) -> str:
    """Return a page of the run's JSON record under the reason why there is no more."""
    title = escape(f"{record.recipe}, {record.run_id}: {record.status}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        f'content="light dark"><title>{title}</title></head><body><h1>{title}</h1>'
        f"<p>{escape(reason)}</p>"
        f"<pre>{escape(record.model_dump_json(indent=1))}</pre></body></html>"
    )
