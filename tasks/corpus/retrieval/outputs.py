"""A data set's outputs in the task's words: its labels are rarely called as the task calls them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tasks.corpus.retrieval.catalogue import DataSet
from tasks.corpus_options import Task

MIN_ABBREVIATION = 3
"""Letters that stand for the longer name that begins with them, where only one does."""


def output_finder(task: Task, entry: DataSet, in_order: bool) -> Callable[[Any], str | None]:
    """Return a function from a data set's value to the task's output, None where it has none.

    A label is found, in this order, by the entry's `labels`; by its name, a number's being that in
    `label_names`; by a name that begins like it (`pos`, `positive`); and, where `in_order`, as the
    number of the task's label. Case, spaces and punctuation do not matter.
    """
    if task.kind == "generation":
        return find_text
    given = {plain(str(value)): label for value, label in entry.labels.items()}
    own = {plain(label): label for label in task.labels}

    def find_label(value: Any) -> str | None:
        if value is None or isinstance(value, list | dict):
            return None
        number = as_number(value)
        if label := given.get(plain(str(value if number is None else number))):
            return label if label in task.labels else None
        if number is not None and entry.label_names:
            value = entry.label_names[number] if number < len(entry.label_names) else ""
            number = None
        if number is None:
            name = plain(str(value))
            return own.get(name) or find_abbreviated(name, own)
        known = own.get(str(number))
        return task.labels[number] if in_order and number < len(task.labels) else known

    return find_label


def find_text(value: Any) -> str | None:
    """Return an output that is text or a number, None for what is neither or empty."""
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, int | float) else None


def find_abbreviated(name: str, own: dict[str, str]) -> str | None:
    fits = [
        label
        for long, label in own.items()
        if min(len(name), len(long)) >= MIN_ABBREVIATION
        and (long.startswith(name) or name.startswith(long))
    ]
    return fits[0] if len(fits) == 1 else None


def as_number(value: Any) -> int | None:
    """Return a label that is a number from 0, which CSV files hold as text."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value >= 0 and value == int(value) else None


def plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
