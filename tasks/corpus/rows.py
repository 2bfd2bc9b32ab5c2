"""Rows of text: JSONL files that a user has, and the rows that the corpus is made of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from tasks.corpus_options import Task
from tasks.errors import CorpusError


class Row(TypedDict):
    """One row of the corpus: what it says, and where it came from."""

    text: str
    """A document, a task's input, or a chat as JSON."""
    text_pair: str | None
    """The second input, where the task is about two."""
    output: str | None
    """What answers the input: a label, or text; None in a plain document."""
    chat: bool
    source: str
    """The source plugin's name, and after a slash the data set where it draws from several."""
    generator: str | None
    """The model that wrote it, where one did."""
    prompt_digest: str | None
    """sha256 of the prompt that it answers."""
    seed: int | None
    """That it was sampled with."""
    licence: str | None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file: `{"text": ...}` or `{"messages": [...]}`.

    Raises:
        CorpusError: a row is not JSON, or has neither key.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{path}:{number} is not JSON: {error}") from None
            if not isinstance(row, dict) or not ("text" in row or "messages" in row):
                raise CorpusError(f"{path}:{number}: expected a mapping with text or messages")
            yield row


def make_row(raw: dict[str, Any], source: str, task: Task | None) -> Row:
    """Return the row of the corpus that a source's mapping stands for.

    Args:
        raw: `text` or `messages`; `text_pair`, and `output` or `label`; and what is known of where
            it came from. Other keys are ignored.

    Raises:
        ValueError: the label is none of the task's.
    """
    output = raw.get("output", raw.get("label") if task else None)
    return Row(
        text=json.dumps(raw["messages"]) if "messages" in raw else raw["text"],
        text_pair=raw.get("text_pair"),
        output=None if output is None else find_output(output, task),
        chat="messages" in raw,
        source=f"{source}/{raw['data_set']}" if "data_set" in raw else source,
        generator=raw.get("generator"),
        prompt_digest=raw.get("prompt_digest"),
        seed=raw.get("seed"),
        licence=raw.get("licence"),
    )


def find_output(output: str | int, task: Task | None) -> str:
    """Return an output as text; a classification's labels may be numbered."""
    if task is None or task.kind == "generation":
        return str(output)
    if output in task.labels:
        return str(output)
    if isinstance(output, int) and 0 <= output < len(task.labels):
        return task.labels[output]
    raise ValueError(f"label {output!r} is none of {task.labels}")
