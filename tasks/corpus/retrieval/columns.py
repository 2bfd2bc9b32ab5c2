"""Which columns of a data set are the task's input or inputs, and its output.

A rule, by names, then by types and by how many different values a column has. It never guesses
between two that would do: that is an error, which lists the columns and says what to write.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tasks.corpus.retrieval.tables import Record
from tasks.corpus.words import split_words
from tasks.corpus_options import Task
from tasks.errors import CorpusError

TEXTS = (
    "text sentence review content document article passage body comment tweet message dialogue "
    "premise question input prompt instruction title"
).split()
PAIRS = [
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "context"),
    ("question", "passage"),
    ("question", "sentence"),
    ("instruction", "input"),
]
OUTPUTS = {
    "classification": (
        "label labels label_text sentiment class category topic intent emotion rating stars "
        "output answer target"
    ).split(),
    "generation": (
        "output answer response completion summary highlights target translation label"
    ).split(),
}
"""Known names, the likeliest first."""
SAMPLE_ROWS = 1000
"""Rows that the rule looks at."""


class Columns(NamedTuple):
    text: str
    text_pair: str | None = None
    output: str | None = None


class Column(NamedTuple):
    """What a sample of rows says of a column."""

    name: str
    kind: str
    """`text`, `number` or `other`."""
    mean_words: float
    num_values: int
    """Different values; 0 where they cannot be compared."""

    def __str__(self) -> str:
        length = f", about {self.mean_words:.0f} words" if self.kind == "text" else ""
        return f"{self.name} ({self.kind}{length}, {self.num_values} values)"


def parse_columns(text: str, where: str) -> dict[str, str]:
    """Return the mapping in `text=review,output=sentiment`. Raises: CorpusError."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and sign and column.strip() for name, sign, column in pairs):
        raise CorpusError(
            f"{where}: expected columns: such as text=review,output=sentiment, got {text!r}"
        )
    return {name.strip(): column.strip() for name, _, column in pairs}


def apply_mapping(mapping: dict[str, str], sample: list[Record], where: str) -> Columns:
    """Return the columns that a user names.

    Raises:
        CorpusError: one is not there, or it is said of something else than the task's parts.
    """
    there = {column for record in sample for column in record}
    if "text" not in mapping or set(mapping) - set(Columns._fields):
        raise CorpusError(
            f"{where}: the mapping names {sorted(mapping)}; expected text, and where the task "
            "has them text_pair and output"
        )
    if missing := sorted(set(mapping.values()) - there):
        raise CorpusError(f"{where}: no column {missing}; its columns are {sorted(there)}")
    return Columns(**mapping)


def choose_columns(sample: list[Record], task: Task | None, where: str) -> Columns:
    """Return the columns that the rule finds; without a task there is no output.

    Raises:
        CorpusError: none would do for one of the parts, or more than one.
    """
    columns = describe_columns(sample)
    by_name = {column.name.casefold(): column for column in columns}
    output = find_output_column(by_name, task) if task else None
    pair = find_pair(by_name)
    wanted = bool(task and any(example.text_pair is not None for example in task.examples))
    if task and task.examples and bool(pair) != wanted:
        found, asked = ("two texts", "one") if pair else ("one text", "two")
        raise unmapped(where, columns, f"its rows have {found}, the task's examples {asked}")
    text, text_pair = pair or (find_text(by_name, {output}), None)
    if text is None:
        raise unmapped(where, columns, "no one column is sure to be the text")
    if output is None and task:
        output = guess_output_column(columns, {text, text_pair}, task)
        if output is None:
            raise unmapped(where, columns, "no one column is sure to be the output")
    return Columns(text, text_pair, output)


def unmapped(where: str, columns: list[Column], why: str) -> CorpusError:
    found = "; ".join(map(str, columns)) or "no columns"
    return CorpusError(
        f"{where}: {why}. Found: {found}",
        "write `mapping: {text: COLUMN, output: COLUMN}` into its entry (text_pair, too, where "
        "the task is about two), or `columns: text=COLUMN,output=COLUMN` into the source's "
        "options, or `exclude` it",
    )


def describe_columns(sample: list[Record]) -> list[Column]:
    names = list(dict.fromkeys(name for record in sample for name in record))
    return [describe_column(name, [record.get(name) for record in sample]) for name in names]


def describe_column(name: str, values: list[Any]) -> Column:
    stated = [value for value in values if value is not None]
    if stated and all(isinstance(value, str) for value in stated):
        mean = sum(len(split_words(value)) for value in stated) / len(stated)
        return Column(name, "text", mean, len(set(stated)))
    if stated and all(isinstance(value, int | float) for value in stated):
        return Column(name, "number", 0.0, len(set(stated)))
    return Column(name, "other", 0.0, 0)


def find_pair(by_name: dict[str, Column]) -> tuple[str, str] | None:
    for first, second in PAIRS:
        one, other = by_name.get(first), by_name.get(second)
        if one and other and one.kind == other.kind == "text":
            return one.name, other.name
    return None


def find_output_column(by_name: dict[str, Column], task: Task) -> str | None:
    for name in OUTPUTS[task.kind]:
        if (column := by_name.get(name)) and column.kind != "other":
            return column.name
    return None


def find_text(by_name: dict[str, Column], taken: set[str | None]) -> str | None:
    texts = [c for c in by_name.values() if c.kind == "text" and c.name not in taken]
    for name in TEXTS:
        if (column := by_name.get(name)) and column in texts:
            return column.name
    prose = [column for column in texts if column.mean_words >= 3]
    return prose[0].name if len(prose) == 1 else None


def guess_output_column(columns: list[Column], taken: set[str | None], task: Task) -> str | None:
    """Return the one column with as many values as the task has labels, or the one more text."""
    left = [column for column in columns if column.name not in taken]
    if task.kind == "classification":
        fits = [column for column in left if column.num_values == len(task.labels)]
    else:
        fits = [column for column in left if column.kind == "text"]
    return fits[0].name if len(fits) == 1 else None
