"""Find and hash what a recipe names, before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from infra.storage import localize
from tasks.corpus.rows import read_rows
from tasks.digests import digest_file
from tasks.models.teacher import find_teacher
from tasks.recipe import Recipe
from tasks.records import ModelRef, TextRef
from tasks.stages import source_uris

if TYPE_CHECKING:
    from infra.storage import Store


class Inputs(NamedTuple):
    """What the recipe names, found and hashed."""

    teacher: ModelRef
    calibration: TextRef
    evaluation: TextRef
    texts: dict[str, TextRef]
    """Files that corpus sources read, by the name of the corpus stage's input."""


def find_inputs(recipe: Recipe, store: Store) -> Inputs:
    """Return the records of the recipe's model and texts.

    Raises:
        ValueError: one of them is missing.
        CorpusError: a text's first row is not a row.
    """
    return Inputs(
        teacher=find_teacher(recipe.teacher, store),
        calibration=find_text("calibration.text", recipe.calibration.text, store),
        evaluation=find_text("evaluation.text", recipe.evaluation.text, store),
        texts={
            name: find_text(f"corpus.sources: {name}", uri, store)
            for name, uri in source_uris(recipe).items()
        },
    )


def find_text(key: str, uri: str, store: Store) -> TextRef:
    try:
        path = localize(store, uri)
    except FileNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ValueError(
            f"{key}: no file {uri}; expected a JSONL file of rows with text or messages"
        )
    if next(read_rows(path), None) is None:
        raise ValueError(f"{key}: {uri} has no rows; expected rows with text or messages")
    return TextRef(uri=uri, digest=digest_file(path), num_bytes=path.stat().st_size)
