"""Tell a team's webhooks how a night ended; one that fails is a warning, never a failed night."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from flows.run_rows import report_place
from flows.stopping import DeadlineReached, NightSkipped
from infra.findings import Finding
from infra.redaction import redact
from infra.settings import read_settings
from infra.webhook import post_json

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.publish.run_history import UnfinishedRun
    from tasks.recipe import Event, Recipe
    from tasks.run_records import ExportResult, RunRecord

SCHEMA_VERSION = 1

EVENTS_OF_STATUS: dict[str, list[Event]] = {
    "failed": ["failed"],
    "cancelled": ["failed"],
    "deadline": ["deadline"],
    "refused": ["refused"],
}


def announce(recipe: Recipe, settings: Settings, record: RunRecord) -> None:
    """Tell every hook what it asked for; a night may have published and refused."""
    events: list[Event] = list(EVENTS_OF_STATUS.get(record.status, []))
    if any(export.outcome == "published" for export in record.exports):
        events.append("published")
    for event in events:
        notify(recipe, settings, event, partial(describe, event, record))


def announce_unopened(recipe: Recipe, error: Exception) -> None:
    """Tell every hook that asked for it of a night that failed before it could leave a record.

    One that was skipped is no news.
    """
    if not isinstance(error, NightSkipped):
        event: Event = "deadline" if isinstance(error, DeadlineReached) else "failed"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write = partial(describe_unrecorded, recipe, event, str(error), None, now)
        notify(recipe, read_settings(), event, write)


def announce_killed(recipe: Recipe, settings: Settings, run: UnfinishedRun) -> None:
    """Tell of a night that could not tell of itself; the next one does, when it begins."""
    error = (
        f"the night of {run.started} left no record of its end: it was killed, or its store "
        "refused to take one"
    )
    print(f"nightpress: warning: {error}", file=sys.stderr)
    write = partial(describe_unrecorded, recipe, "failed", error, run.run_id, run.started)
    notify(recipe, settings, "failed", write)


@contextmanager
def told_if_it_fails(recipe: Recipe) -> Iterator[None]:
    """Announce what a block raises that comes before the night's opening."""
    try:
        yield
    except Exception as error:
        announce_unopened(recipe, error)
        raise


def notify(
    recipe: Recipe, settings: Settings, event: Event, write: Callable[[], dict[str, Any]]
) -> None:
    """Post an event to the hooks that asked for it; whatever goes wrong is a line on stderr.

    Args:
        write: Makes the document.
    """
    for hook in recipe.notify:
        if event not in hook.on:
            continue
        try:
            url = settings.webhook_url(hook.webhook_env)
            problem = post_json(url, write()) if url else "it is not set"
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
        "text": summarize(record.recipe, event, said),
        "recipe": record.recipe,
        "run_id": record.run_id,
        "status": record.status,
        "started": record.started,
        "seconds": record.seconds,
        "channel": record.channel,
        "exports": exports,
        "error": record.error,
        "report_uri": report_place(record),
    }


def describe_unrecorded(
    recipe: Recipe, event: Event, error: str, run_id: str | None, started: str
) -> dict[str, Any]:
    """Return the document about a night that left no record, and perhaps had no id yet."""
    said = redact(error, (hook.webhook_env for hook in recipe.notify))
    return {
        "schema_version": SCHEMA_VERSION,
        "event": event,
        "text": summarize(recipe.name, event, said.partition("\n")[0]),
        "recipe": recipe.name,
        "run_id": run_id,
        "status": event,
        "started": started,
        "seconds": 0.0,
        "channel": recipe.publish.channel,
        "exports": [],
        "error": said,
        "report_uri": None,
    }


def summarize(name: str, event: Event, said: str) -> str:
    return f"nightpress: {name} {event}" + (f": {said}" if said else "")


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
