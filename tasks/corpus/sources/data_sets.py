"""Rows of data sets that are about the task: found in a catalogue by their descriptions.

Reference: Viswanathan et al. 2023, "Prompt2Model", arXiv:2308.12261, section 3.1 (data sets
retrieved by the instruction, columns mapped to input and output); here BM25 ranks, and a rule maps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.retrieval.catalogue import DataSet, Ranked, is_forbidden, rank, read_catalogue
from tasks.corpus.retrieval.columns import (
    SAMPLE_ROWS,
    Columns,
    apply_mapping,
    choose_columns,
    parse_columns,
)
from tasks.corpus.retrieval.fetching import fetch_entry
from tasks.corpus.retrieval.outputs import output_finder
from tasks.corpus.retrieval.queries import describe_words, task_query
from tasks.corpus.retrieval.sampling import sample_rows
from tasks.corpus.retrieval.tables import Record, read_records
from tasks.errors import CorpusError
from tasks.plugins import CatalogueUri

USES = ()


def read(
    context: CorpusContext,
    *,
    catalogue: CatalogueUri,
    rows_per_data_set: Annotated[int, Field(gt=0)],
    num_data_sets: Annotated[int, Field(gt=0)] = 1,
    min_score: Annotated[float, Field(ge=0)] = 0.0,
    query: str | None = None,
    columns: str | None = None,
    labels_in_order: bool = False,
    forbid_licences: str | None = None,
    exclude: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield rows of the data sets that fit the task best, drawn at random, the best set first.

    Of a classification equally many of each label are drawn, as far as a data set has them.

    Args:
        catalogue: YAML or JSONL of `tasks.corpus.retrieval.catalogue.DataSet`.
        rows_per_data_set: At most.
        num_data_sets: At most; fewer where fewer score above `min_score`.
        min_score: BM25 that a description must exceed; 0 asks for one of the words.
        query: Words to look for beside those of the task's instruction and examples.
        columns: Which columns to take, `text=review,output=sentiment`, instead of the rule's
            choice and of what entries say.
        labels_in_order: A number for which no entry has a name is the task's label of that place,
            from 0. Data sets differ in this, so it must be asked for.
        forbid_licences: Such as `cc-by-nc,unknown`; data sets of these licences, their versions
            and variants are passed over, and counted.
        exclude: Names of entries to leave out, with commas.

    Raises:
        CorpusError: no data set fits, none may be used, or one's columns or labels cannot be
            mapped to the task's.
    """
    looked_for = task_query(context.task, query)
    forbidden, excluded = split_names(forbid_licences), split_names(exclude)
    found = choose_entries(context, catalogue, looked_for, min_score, forbidden, excluded)
    for _, entry in found[:num_data_sets]:
        yield from draw_rows(context, catalogue, entry, rows_per_data_set, columns, labels_in_order)


def split_names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def choose_entries(
    context: CorpusContext,
    catalogue: str,
    query: str,
    min_score: float,
    forbidden: list[str],
    excluded: list[str],
) -> list[Ranked[DataSet]]:
    """Return the entries that may be used and score above `min_score`, the best first."""
    entries = read_catalogue(context.local(catalogue), DataSet)
    if strange := sorted(set(excluded) - {entry.name for entry in entries}):
        raise CorpusError(
            f"data_sets: exclude: no entry {strange} in {catalogue}; it has "
            f"{sorted(entry.name for entry in entries)}"
        )
    ranked, looked_for = rank([e for e in entries if e.name not in excluded], query)
    matching = [found for found in ranked if found.score > min_score]
    if not matching:
        best = f"{ranked[0].score:.2f} ({ranked[0].entry.name})" if ranked else "none"
        raise CorpusError(
            f"data_sets: none of {len(ranked)} data sets in {catalogue} scores above min_score: "
            f"{min_score} for {describe_words(looked_for)}; the best score is {best}",
            "describe the data sets in the task's words, give a `query`, or lower min_score",
        )
    allowed = []
    for found in matching:
        licence = found.entry.licence
        if is_forbidden(licence, forbidden):
            context.refused[f"data set of the forbidden licence {licence}"] += 1
        else:
            allowed.append(found)
    if not allowed:
        named = ", ".join(f"{found.entry.name} ({found.entry.licence})" for found in matching)
        raise CorpusError(
            f"data_sets: every data set that fits has a licence that the recipe forbids: {named}",
            "add other data sets to the catalogue, or change forbid_licences",
        )
    return allowed


def draw_rows(
    context: CorpusContext,
    catalogue: str,
    entry: DataSet,
    num_rows: int,
    columns: str | None,
    labels_in_order: bool,
) -> list[dict[str, Any]]:
    """Return rows of one data set in the task's terms; what it could not use is counted."""
    where = f"data set {entry.name}"
    path = fetch_entry(context, catalogue, entry)
    sample = list(islice(read_records(path, entry.split), SAMPLE_ROWS))
    mapping = parse_columns(columns, where) if columns else entry.mapping
    if mapping:
        chosen = apply_mapping(mapping, sample, where)
    else:
        chosen = choose_columns(sample, context.task, where)
    strange: Counter[str] = Counter()
    records = read_records(path, entry.split)
    rows = map_rows(context, records, entry, chosen, labels_in_order, strange)
    task = context.task
    by_output = task is not None and task.kind == "classification"
    drawn = sample_rows(rows, num_rows, f"{context.seed} {entry.name}", by_output)
    if not drawn and task and strange:
        met = [value for value, _ in strange.most_common(10)]
        raise CorpusError(
            f"{where}: none of its outputs in the column {chosen.output} is one of "
            f"{task.labels or 'any text'}; it has {met}",
            "write `labels: {ITS LABEL: THE TASK'S}` into its entry, or where they are numbers "
            "`label_names: [NAME OF 0, NAME OF 1]`; or `exclude` it, or raise min_score",
        )
    if not drawn:
        raise CorpusError(f"{where}: it has no rows with text in the column {chosen.text}")
    return drawn


def map_rows(
    context: CorpusContext,
    records: Iterator[Record],
    entry: DataSet,
    columns: Columns,
    labels_in_order: bool,
    strange: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Yield the records that have what the task needs; `strange` counts outputs that it has not."""
    task = context.task
    find = output_finder(task, entry, labels_in_order) if task and columns.output else None
    texts = [name for name in (columns.text, columns.text_pair) if name]
    for record in records:
        if not all(isinstance(record.get(name), str) and record[name].strip() for name in texts):
            context.refused[f"{entry.name}: no text"] += 1
            continue
        output = None
        if find and columns.output:
            value = record.get(columns.output)
            output = find(value)
            if output is None:
                strange[str(value)[:40]] += 1
                context.refused[f"{entry.name}: output that is none of the task's"] += 1
                continue
        yield {
            "text": record[columns.text],
            "text_pair": record[columns.text_pair] if columns.text_pair else None,
            "output": output,
            "data_set": entry.name,
            "licence": entry.licence,
        }
