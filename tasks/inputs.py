"""Find and hash what a recipe names, before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from infra.storage import localize
from tasks.corpus.retrieval.catalogue import HUB_FILE, DataSet, entry_uri, read_catalogue
from tasks.corpus.rows import read_rows
from tasks.corpus_stages import source_data
from tasks.digests import digest_file, digest_of, digest_path
from tasks.evaluate.labelled import name_labels, read_labelled
from tasks.evaluate.task_files import check_task_files
from tasks.evaluation_options import LabelledTask, LmEvalTask
from tasks.models.folder import load_config
from tasks.models.model_kind import head_kind
from tasks.models.teacher import find_model
from tasks.plugins import catalogue_options, data_options
from tasks.recipe import Recipe
from tasks.recipe_parts import NamedModel
from tasks.records import DataRef, ModelRef, TextRef

if TYPE_CHECKING:
    from infra.storage import Store


class Inputs(NamedTuple):
    """What the recipe names, found and hashed."""

    teacher: ModelRef
    calibration: TextRef
    evaluation: TextRef
    tasks: dict[str, TextRef | DataRef]
    """What evaluation tasks read, by their names; nothing where lm-eval has the task."""
    sources: list[dict[str, TextRef | DataRef]]
    """What each corpus source reads, by option."""
    students: dict[NamedModel | None, ModelRef]
    """Models that distill steps start from, where that is not the model of the step before."""


def find_inputs(recipe: Recipe, store: Store) -> Inputs:
    """Return the records of the recipe's model and texts.

    Raises:
        ValueError: one of them is missing.
        CorpusError: a text's first row is not a row.
    """
    teacher = find_model("teacher.model", recipe.teacher, store)
    reads_rows = head_kind(teacher.architecture) == "sequence_classification"
    find_held_out = find_labelled if reads_rows else find_text
    return Inputs(
        teacher=teacher,
        calibration=find_text("calibration.text", recipe.calibration.text, store),
        evaluation=find_held_out("evaluation.text", recipe.evaluation.text, store),
        tasks={
            task.name: found
            for task in recipe.evaluation.tasks
            if (found := find_task(task, recipe, teacher, store))
        },
        sources=[
            find_source_data(recipe, number, store)
            for number in range(1, len(recipe.corpus.sources) + 1)
        ],
        students={
            step.distill.student: find_model("distill.student.model", step.distill.student, store)
            for step in recipe.steps
            if step.distill and step.distill.student
        },
    )


def find_source_data(recipe: Recipe, number: int, store: Store) -> dict[str, TextRef | DataRef]:
    """Return what one corpus source, counted from 1, reads."""
    name = recipe.corpus.sources[number - 1].name
    found: dict[str, TextRef | DataRef] = {}
    catalogues, data = catalogue_options("source", name), data_options("source", name)
    for option, uri in source_data(recipe, number).items():
        key = f"corpus.sources.{number - 1} ({name}): {option}"
        if option in catalogues:
            found[option] = find_catalogue(key, uri, store)
        else:
            found[option] = (find_data if option in data else find_text)(key, uri, store)
    return found


def find_text(key: str, uri: str, store: Store) -> TextRef:
    """Return a JSONL file of rows. Raises: ValueError: it is not there, or empty."""
    path = find_path(uri, store)
    if path is None or not path.is_file():
        raise ValueError(
            f"{key}: no file {uri}; expected a JSONL file of rows with text or messages"
        )
    if next(read_rows(path), None) is None:
        raise ValueError(f"{key}: {uri} has no rows; expected rows with text or messages")
    return TextRef(uri=uri, digest=digest_file(path), num_bytes=path.stat().st_size)


def find_labelled(key: str, uri: str, store: Store) -> TextRef:
    """Return a JSONL file of labelled rows, all of them read once.

    Raises:
        ValueError: it is not there.
        CorpusError: a row is no labelled one, or there is none.
    """
    path = find_path(uri, store)
    if path is None or not path.is_file():
        raise ValueError(f"{key}: no file {uri}; expected a JSONL file of rows with a label")
    read_labelled(path)
    return TextRef(uri=uri, digest=digest_file(path), num_bytes=path.stat().st_size)


def find_task(
    task: LabelledTask | LmEvalTask, recipe: Recipe, teacher: ModelRef, store: Store
) -> TextRef | DataRef | None:
    """Return what an evaluation task reads; None where lm-eval brings it.

    Raises:
        ValueError: it is not there, the teacher cannot do the task, or a task file runs code.
        CorpusError: a row is no labelled one.
    """
    key = f"evaluation.tasks: {task.name}"
    if isinstance(task, LabelledTask):
        name_labels(task.model_dump(), load_config(localize(store, teacher.uri)))
        return find_labelled(f"{key}: data", task.data, store)
    if head_kind(teacher.architecture) != "causal_lm":
        raise ValueError(f"{key}: lm-eval asks causal language models, got {teacher.architecture}")
    if task.include is None:
        return None
    found = find_data(f"{key}: include", task.include, store)
    if not recipe.teacher.trust_remote_code:
        check_task_files(localize(store, found.uri), key)
    return found


def find_data(key: str, uri: str, store: Store) -> DataRef:
    """Return a file or folder of any kind. Raises: ValueError: there is none."""
    path = find_path(uri, store)
    if path is None or not path.exists():
        raise ValueError(f"{key}: no file or folder {uri}")
    return DataRef(uri=uri, digest=digest_path(path))


def find_catalogue(key: str, uri: str, store: Store) -> DataRef:
    """Return a catalogue of data sets; its digest covers what each of its entries leads to.

    An entry that states its data's sha256, or is a file of one commit on the hub, is not read.

    Raises:
        ValueError: the catalogue, or an entry's data, is not there or is wrong.
    """
    path = find_path(uri, store)
    if path is None or not path.is_file():
        raise ValueError(f"{key}: no file {uri}; expected a catalogue in YAML or JSONL")
    digests = {}
    for entry in read_catalogue(path, DataSet):
        if entry.sha256 is None and not HUB_FILE.fullmatch(entry.uri):
            where = entry_uri(uri, entry.uri)
            digests[entry.name] = find_data(f"{key}: entry {entry.name}", where, store).digest
    return DataRef(uri=uri, digest=digest_of([digest_file(path), digests]))


def find_path(uri: str, store: Store) -> Path | None:
    try:
        return localize(store, uri)
    except FileNotFoundError:
        return None
