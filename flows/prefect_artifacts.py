"""A night in Prefect's UI: tables and links as artifacts, each with a history under its key."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from urllib.parse import quote

from prefect.artifacts import Artifact, LinkArtifact, MarkdownArtifact, TableArtifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.run_rows import gate_rows, model_rows, report_place, stage_rows, summarize_run
from tasks.run_records import RunRecord

TIMEOUT_S = 5.0
"""For each request; the first one without an answer is the last one made."""


def show_run(record: RunRecord) -> None:
    """Hand a run's artifacts to Prefect's server; without an answer, say so and go on."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": TIMEOUT_S}) as client,
        ):
            for artifact in make_artifacts(record):
                client.create_artifact(
                    ArtifactCreate(
                        type=artifact.type,
                        key=artifact.key,
                        description=artifact.description,
                        data=artifact.format(_sync=True),  # type: ignore[call-arg]
                        flow_run_id=context.flow_run.id,
                    )
                )
    except Exception as error:  # the night's own end must not depend on who shows it
        print(
            f"nightpress: warning: Prefect's UI was not told of {record.run_id} "
            f"({type(error).__name__}); nightpress runs {record.recipe} shows it",
            file=sys.stderr,
        )


def make_artifacts(record: RunRecord) -> Iterator[Artifact]:
    """Yield the summary, the tables that have rows, and links to the report and each artifact."""
    about = f"{record.run_id}: {summarize_run(record)}"

    def key(what: str) -> str:
        return name_key(record.recipe, what)

    yield MarkdownArtifact(key=key("night"), description=about, markdown=describe_run(record))
    tables = {
        "models": model_rows(record),
        "gate": [row for export in record.exports for row in gate_rows(export)],
        "stages": stage_rows(record),
    }
    for what, rows in tables.items():
        if rows:
            yield TableArtifact(key=key(what), description=about, table=rows)
    yield make_link(key("report"), about, "report", report_place(record))
    for export in record.exports:
        if export.artifact:
            what = f"{export.export} {export.outcome}"
            yield make_link(key(f"export-{export.export}"), about, what, export.artifact.uri)


def describe_run(record: RunRecord) -> str:
    """Write Markdown in which nothing that a model or a library has said is markup."""
    said = [f"**{record.recipe}** {summarize_run(record)}"]
    if record.error:
        said.append("\n".join(f"    {line}" for line in record.error.splitlines()))
    said += [f"- {export.export}: {export.outcome}" for export in record.exports]
    return "\n\n".join(said)


def make_link(key: str, about: str, text: str, uri: str) -> LinkArtifact:
    """Link to a URI; the UI shows one that no browser opens, such as s3://, as text to copy."""
    return LinkArtifact(
        key=key,
        description=f"{about}\n\n`{uri}`",
        link=quote(uri, safe=":/@~"),
        link_text=text,
    )


def name_key(recipe: str, what: str) -> str:
    """Return a key as Prefect wants it, the same every night: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{recipe}-{what}".lower()).strip("-")
