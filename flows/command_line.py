"""The `nightpress` command: results on stdout, everything else on stderr, one exit code per end.

Heavy imports wait inside the commands, so that `--help` and a wrong recipe answer at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from flows import artifact_commands, corpus_commands, retrieval_commands, schedule_commands
from flows.command_options import (
    BAD_INPUT,
    DEADLINE,
    FAILED,
    REFUSED,
    SKIPPED,
    AsJson,
    Overrides,
    RecipePath,
    emit,
    exit_at_deadline,
    how_to_go_on,
    load,
    run_to_end,
    starting_api,
    store_of,
)
from infra.redaction import redact

app = typer.Typer(
    name="nightpress",
    help="Turn a large transformer into the smallest model that still passes your quality gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(schedule_commands.app)
app.add_typer(artifact_commands.app)
app.add_typer(corpus_commands.app)
app.add_typer(retrieval_commands.app)


def print_version(asked: bool) -> None:
    if asked:
        print(f"nightpress {version('nightpress')}")
        raise typer.Exit


@app.callback()
def begin(
    debug: Annotated[bool, typer.Option(help="Show tracebacks and the libraries' logs.")] = False,
    asked_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    if debug:
        os.environ["NIGHTPRESS_DEBUG"] = "1"


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="HH:MM", help="Start no more work then; overrides the schedule's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe to its end: what is stored already is not computed again."""
    if deadline is not None:
        overrides = [*(overrides or []), f"schedule.deadline={json.dumps(deadline)}"]
    loaded = load(recipe, overrides)
    with starting_api() as wait_until_up:
        from flows.compress_model import compress_model
        from flows.tables import print_run

        record = run_to_end(compress_model, loaded, wait_until_up)
    emit(record.model_dump(mode="json")) if as_json else print_run(record)
    exit_at_deadline(record)
    if record.status == "refused":
        raise typer.Exit(REFUSED)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="8xH100", help="Plan the whole recipe for these workers instead."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Of a worker's hour; overrides the recipe's cost.worker_hour."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would compute, what is stored, how long it takes and what it costs."""
    loaded = load(recipe, overrides)
    from flows.devices import parse_cluster
    from flows.measured_nights import recent_runs
    from flows.planning import make_plan
    from flows.tables import print_plan
    from tasks.inputs import find_inputs

    elsewhere = parse_cluster(cluster) if cluster else None
    store = store_of(loaded)
    made = make_plan(
        loaded,
        find_inputs(loaded, store),
        store,
        history=recent_runs(store, loaded.name),
        elsewhere=elsewhere,
        worker_hour=price,
    )
    emit(made.model_dump(mode="json")) if as_json else print_plan(made)


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look for what would make a night fail: rights, disk, models, memory, cluster, versions."""
    loaded = load(recipe, overrides)
    from flows.preflight import examine
    from flows.tables import print_findings

    findings = examine(loaded)
    if as_json:
        emit({"findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(BAD_INPUT)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    text: Annotated[
        Path | None, typer.Option(help="Held-out JSONL; of a classifier, --data when left out.")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens that the model sees at once.")] = 256,
    stride: Annotated[int | None, typer.Option(help="Tokens scored per window.")] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled JSONL to score it on.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="accuracy, f1, f1_macro, matthews, pearson, spearman.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What a language model reads: '{text} Sentiment:'.")
    ] = None,
    verbalizer: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=WORDS", help="What it says for a label, in their order."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure held-out nats and prefill speed of any model folder, in this process, and its scores
    on labelled rows."""
    from flows.evaluate_folder import evaluate_folder, make_task
    from flows.tables import print_metrics

    held_out = text or data
    if held_out is None:
        raise ValueError("expected --text, --data, or both")
    task = make_task(data, metric or [], prompt, verbalizer or []) if data else None
    metrics = evaluate_folder(model, held_out, window, stride, task)
    emit(metrics.model_dump(mode="json")) if as_json else print_metrics(metrics)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="File to be made.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a commented recipe to start from."""
    from tasks.recipe_template import TEMPLATE

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise ValueError(f"{path} is there already; name another file") from None
    print(f"{path} written; next: edit teacher, texts and gate, then `nightpress doctor {path}`")


@app.command()
def schema(
    which: Annotated[str, typer.Argument(metavar="recipe|manifest")] = "recipe",
) -> None:
    """Print the JSON Schema of the recipe or of an artifact's manifest."""
    if which == "recipe":
        from tasks.recipe import Recipe

        emit(Recipe.model_json_schema())
    elif which == "manifest":
        from tasks.publish.manifest import Manifest

        emit(Manifest.model_json_schema())
    else:
        raise ValueError(f"schema: expected recipe or manifest, got {which!r}")


def main() -> None:
    """Run the command and turn how it ended into an exit code."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    message = None
    try:
        code = app(standalone_mode=False)  # a command that raises Exit makes this its code
    except Exception as error:
        if os.environ.get("NIGHTPRESS_DEBUG"):
            raise
        message, code = explain(error)
    if received:  # whatever a library has made of the interrupt on its way here
        code = 128 + received[-1]
        message = f"stopped by {signal.Signals(received[-1]).name}\n  {how_to_go_on()}"
    if message:
        print(f"nightpress: {redact(message)}", file=sys.stderr)
    sys.exit(code)


def explain(error: Exception) -> tuple[str, int]:
    """Return what the user is told of an error, and the exit code."""
    if isinstance(error, TyperException):
        return error.format_message(), BAD_INPUT
    if isinstance(error, ValueError):
        return str(error), BAD_INPUT
    from tasks.errors import CompressionError

    if isinstance(error, CompressionError):
        from flows.stopping import DeadlineReached, NightSkipped

        if isinstance(error, NightSkipped):
            return str(error), SKIPPED
        if isinstance(error, DeadlineReached):
            return f"{error}\n  {how_to_go_on()}", DEADLINE
    known = isinstance(error, CompressionError)
    message = str(error) if known else f"{type(error).__name__}: {error} (--debug shows more)"
    return f"{message}\n  {how_to_go_on()}", FAILED
