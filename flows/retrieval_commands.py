"""Commands that look for what a recipe could start from: models and data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command_options import AsJson, Overrides, RecipePath, emit, load

app = typer.Typer()


@app.command()
def models(
    recipe: RecipePath,
    catalogue: Annotated[Path, typer.Option(metavar="FILE", help="YAML or JSONL of model cards.")],
    max_parameters: Annotated[
        int | None, typer.Option(min=1, help="Of a student; the teacher is always larger.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Rank models that a student may start from, by the recipe's task and by size."""
    from tasks.corpus.retrieval.queries import task_query
    from tasks.corpus.retrieval.starting_models import propose_students

    loaded = load(recipe, overrides)
    if not catalogue.is_file():
        raise ValueError(f"--catalogue: no file {catalogue}; expected model cards, YAML or JSONL")
    found = propose_students(
        catalogue, task_query(loaded.task, None), loaded.teacher.model, max_parameters
    )
    if as_json:
        emit({"models": [c._asdict() | {"card": c.card.model_dump()} for c in found]})
        return
    from flows.retrieval_tables import print_candidates

    print_candidates(found)


@app.command("catalogue")
def catalogue_command(
    recipe: RecipePath,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Catalogue to be made, YAML.")],
    limit: Annotated[int, typer.Option(min=1, help="Data sets at most.")] = 20,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Search the Hugging Face hub for data sets of the recipe's task; write a pinned catalogue."""
    import yaml
    from huggingface_hub import HfApi

    from tasks.corpus.retrieval.hub import search_hub
    from tasks.corpus.retrieval.queries import task_query

    loaded = load(recipe, overrides)
    entries = search_hub(HfApi(), task_query(loaded.task, None), limit)
    rows = [entry.model_dump(exclude_defaults=True) for entry in entries]
    text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=100)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{output} is there already; name another file") from None
    if as_json:
        emit({"path": str(output), "data_sets": rows})
        return
    from flows.retrieval_tables import print_data_sets

    print_data_sets(entries)
    print(f"\n{output} written; look at the licences, then name it in a data_sets source")
