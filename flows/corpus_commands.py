"""Commands on a recipe's corpus: build it without training anything, and look at what is stored."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.command_options import (
    AsJson,
    Overrides,
    RecipePath,
    emit,
    exit_at_deadline,
    load,
    run_to_end,
    starting_api,
    store_of,
)

app = typer.Typer(name="corpus", no_args_is_help=True, help="Build a recipe's corpus; look at it.")


@app.command()
def build(
    recipe: RecipePath,
    overrides: Overrides = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the rows, as `corpus.publish: true` does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Generate, label, filter and pack the rows of a recipe; a later `run` finds them stored."""
    loaded = load(recipe, [*(overrides or []), *["corpus.publish=true"] * publish])
    with starting_api() as wait_until_up:
        from flows.corpus_tables import print_built
        from flows.make_corpus import build_corpus

        record = run_to_end(build_corpus, loaded, wait_until_up, corpus_alone=True)
    emit(record.model_dump(mode="json")) if as_json else print_built(record)
    exit_at_deadline(record)


@app.command()
def show(
    recipe: RecipePath,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=0, help="Rows to print, from all over it.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Say what is in a corpus that is stored: counts, reasons, balance, cost, and some rows."""
    loaded = load(recipe, overrides)
    from flows.corpus_tables import print_corpus, print_samples
    from flows.make_corpus import read_corpus
    from tasks.corpus.samples import sample_rows
    from tasks.inputs import find_inputs

    store = store_of(loaded)
    try:
        result = read_corpus(loaded, find_inputs(loaded, store), store)
    except LookupError as error:
        remedy = how_to_build(recipe, overrides)
        raise ValueError(f"not built yet, {error} is not stored; {remedy}") from None
    rows = sample_rows(store, result.corpus, samples)
    if as_json:
        emit(result.model_dump(mode="json") | {"samples": rows})
    else:
        print_corpus(result)
        print_samples(rows)


def how_to_build(recipe: Path, overrides: list[str] | None) -> str:
    given = [part for override in overrides or [] for part in ("--set", override)]
    return f"`{shlex.join(['nightpress', 'corpus', 'build', str(recipe), *given])}` makes it"
