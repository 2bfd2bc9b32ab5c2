"""What commands share: their arguments, what these open, and how programs get the result."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.settings import quiet_environment, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from prefect import Flow

    from infra.storage import Store
    from tasks.recipe import Recipe
    from tasks.run_records import RunRecord

SCHEMA_VERSION = 1

FAILED, BAD_INPUT, REFUSED, DEADLINE, SKIPPED = 1, 2, 3, 4, 5
"""Exit codes."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key: --set corpus.block_tokens=128"
    ),
]
StoreUri = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URI", help="file:// or s3:// store; default NIGHTPRESS_STORE."
    ),
]
Reference = Annotated[
    str, typer.Argument(metavar="REF", help="RECIPE[/EXPORT][@CHANNEL | @sha256:HEX]")
]


def load(path: Path, overrides: list[str] | None) -> Recipe:
    from tasks.recipe_file import load_recipe

    recipe = load_recipe(path, overrides)
    quiet_environment(read_settings())
    return recipe


def store_of(recipe: Recipe) -> Store:
    from infra.storage import open_store

    settings = read_settings()
    return open_store(settings.store_uri(recipe.publish.store), settings.home / "cache")


def starting_api() -> AbstractContextManager[Callable[[], None]]:
    """Give a run Prefect's API; what it yields waits until it is up. Heavy imports go inside."""
    from infra.prefect_server import prefect_api

    return prefect_api(read_settings().home / "prefect")


def run_to_end(
    flow: Flow[[Recipe], RunRecord],
    recipe: Recipe,
    wait_until_up: Callable[[], None],
    corpus_alone: bool = False,
) -> RunRecord:
    """Run a flow on a recipe that its preflight finds good.

    Args:
        wait_until_up: Returns when Prefect's API can be asked; the preflight does not need it.
        corpus_alone: The flow ends with the corpus.

    Raises:
        ValueError: the preflight found errors.
        CompressionError: also for what would otherwise read as an error in the recipe.
    """
    from flows.preflight import preflight
    from flows.recorded_night import run_flow
    from tasks.errors import CompressionError

    preflight(recipe, corpus_alone)
    wait_until_up()
    try:
        return run_flow(flow, recipe)
    except ValueError as error:
        raise CompressionError(str(error)) from error


def exit_at_deadline(record: RunRecord) -> None:
    """End the command with DEADLINE, and say how to go on, where the night ended so."""
    if record.status == "deadline":
        print(f"nightpress: {record.error}\n  {how_to_go_on()}", file=sys.stderr)
        raise typer.Exit(DEADLINE)


def how_to_go_on() -> str:
    again = shlex.join(["nightpress", *sys.argv[1:]])
    return f"what is stored is kept; to go on from there: {again}"


def emit(document: dict[str, Any]) -> None:
    """Print one JSON document, stamped with the version that its readers check."""
    print(json.dumps({"schema_version": SCHEMA_VERSION} | document, indent=1))
