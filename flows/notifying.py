"""Tell a team's webhooks how a night ended; one that fails is a warning, never a failed night."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from infra.findings import Finding
from infra.webhook import post_json

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.recipe import Event, Recipe
    from tasks.records import ExportResult, RunRecord

SCHEMA_VERSION = 1

EVENTS_OF_STATUS: dict[str, list[Event]] = {
    "failed": ["failed"],
    "deadline": ["deadline"],
    "refused": ["refused"],
}


def announce(recipe: Recipe, settings: Settings, record: RunRecord) -> None:
    """Tell every hook what it asked for; a night may have published and refused."""
    events: list[Event] = list(EVENTS_OF_STATUS.get(record.status, []))
    if any(export.outcome == "published" for export in record.exports):
        events.append("published")
    for event in events:
        notify(recipe, settings, event, record)


def notify(recipe: Recipe, settings: Settings, event: Event, facts: RunRecord) -> None:
    """Post an event to the hooks that asked for it; whatever goes wrong is a line on stderr."""
    for hook in recipe.notify:
        if event not in hook.on:
            continue
        try:
            url = settings.webhook_url(hook.webhook_env)
            problem = post_json(url, describe(event, facts)) if url else "it is not set"
        except Exception as error:  # the night's own end must not depend on a message about it
            problem = f"it could not be told ({type(error).__name__})"
        if problem:
            print(
                f"nightpress: warning: {event} was not told to the webhook in "
                f"{hook.webhook_env}: {problem}",
                file=sys.stderr,
            )


def describe(event: Event, record: RunRecord) -> dict[str, Any]:
    """Return the document that is posted; chats show its `text`, programs read the rest."""
    exports = [describe_export(record, export) for export in record.exports]
    outcomes = ", ".join(f"{export['export']} {export['outcome']}" for export in exports)
    first_line = (record.error or "").partition("\n")[0]
    said = outcomes if event in ("refused", "published") else first_line or outcomes
    return {
        "schema_version": SCHEMA_VERSION,
        "event": event,
        "text": f"nightpress: {record.recipe} {event}" + (f": {said}" if said else ""),
        "recipe": record.recipe,
        "run_id": record.run_id,
        "status": record.status,
        "started": record.started,
        "seconds": record.seconds,
        "channel": record.channel,
        "exports": exports,
        "error": record.error,
        "report_uri": f"{record.store_uri}/runs/{record.recipe}/{record.run_id}/report.html",
    }


def describe_export(record: RunRecord, export: ExportResult) -> dict[str, Any]:
    """Return one export's outcome, its figures with their protocol, and the gate's reasons."""
    found = {row.title: row for row in record.models if row.kind == "export"}
    row = found[export.export]
    return {
        "export": export.export,
        "outcome": export.outcome,
        "digest": row.model.digest,
        "num_parameters": row.model.num_parameters,
        "num_bytes": row.model.num_bytes,
        "nats_per_token": row.metrics.nats_per_token,
        "protocol": row.metrics.protocol,
        "tokens_per_s": row.metrics.tokens_per_s,
        "speed_protocol": row.metrics.speed_protocol,
        "reasons": [check.reason for check in export.gate.checks if check.reason],
    }


def check_hooks(recipe: Recipe, settings: Settings) -> list[Finding]:
    """Look whether every webhook's variable is set, before the night that would want it."""
    missing = [h.webhook_env for h in recipe.notify if not settings.webhook_url(h.webhook_env)]
    if missing:
        names = ", ".join(missing)
        remedy = "set it to the webhook's URL where the night runs, or leave it out of the recipe"
        return [Finding("warning", "notify", f"{names} is not set: nobody is told", remedy)]
    if recipe.notify:
        return [Finding("ok", "notify", ", ".join(hook.webhook_env for hook in recipe.notify))]
    return []
