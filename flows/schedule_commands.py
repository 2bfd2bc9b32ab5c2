"""Commands that have nights run by themselves: serve, deploy."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from flows.command_options import AsJson, Overrides, RecipePath, emit, load

app = typer.Typer()


@app.command("serve")
def serve_command(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run a recipe whenever its schedule says so, until this process is stopped."""
    loaded = load(recipe, overrides)
    from flows.preflight import preflight
    from flows.run_nightly import serve_recipe

    preflight(loaded)
    if start := loaded.schedule.next_start(datetime.now(UTC)):
        print(f"{loaded.name}: the next night begins {start:%Y-%m-%d %H:%M %Z}", file=sys.stderr)
    serve_recipe(loaded)


@app.command("deploy")
def deploy_command(
    recipe: RecipePath,
    pool: Annotated[str, typer.Option(help="Prefect's work pool, of type process.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Have a Prefect server's workers run a recipe whenever its schedule says so."""
    loaded = load(recipe, overrides)
    from flows.run_nightly import deploy_recipe

    name = deploy_recipe(loaded, pool)
    if as_json:
        emit({"deployment": name, "pool": pool})
    else:
        print(f"{name} is deployed; its nights run where `prefect worker start --pool {pool}` does")
