"""Rows of text: JSONL files that a user has, and the rows that the corpus is made of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from tasks.corpus_options import Task
from tasks.errors import CorpusError
from tasks.models.model_kind import HeadKind

TWO_TEXTS = {
    "text_a": "text",
    "text_b": "text_pair",
    "sentence": "text",
    "sentence1": "text",
    "sentence2": "text_pair",
}
QUESTION = {"question": "text", "context": "text_pair"}
"""What columns of labelled data are called here, where there is none of that name; a question
stands beside its context, as in SQuAD."""


class Row(TypedDict):
    """One row of the corpus: what it says, and where it came from."""

    text: str
    """A document, a task's input, or a chat as JSON."""
    text_pair: str | None
    """The second input, where the task is about two."""
    output: str | None
    """What answers the input: a label, a score, or text; None in a plain document. Of a question
    to be answered from its context, JSON of `text` and `answer_start`, or "" where the context does
    not say."""
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

    Of two texts the second is `text_pair`; text_a and text_b, sentence1 and sentence2, question and
    context, as labelled data calls them, are renamed.

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
            row = name_texts(row) if isinstance(row, dict) else row
            if not isinstance(row, dict) or not ("text" in row or "messages" in row):
                raise CorpusError(f"{path}:{number}: expected a mapping with text or messages")
            yield row


def name_texts(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its texts under the names that they have here."""
    asks = "text" not in row and QUESTION.keys() <= row.keys()
    names = {old: new for old, new in (QUESTION if asks else TWO_TEXTS).items() if new not in row}
    return {names.get(key, key): value for key, value in row.items()}


def make_row(
    raw: dict[str, Any], source: str, task: Task | None, head: HeadKind = "causal_lm"
) -> Row:
    """Return the row of the corpus that a source's mapping stands for.

    Args:
        raw: `text` or `messages`; `text_pair`, and what `read_output` reads; and what is known of
            where it came from. Other keys are ignored.
        head: Of the teacher. What classifies has labels without a task, too; what answers questions
            has `answers`, as SQuAD has them, of which the first counts.

    Raises:
        ValueError: the label is none of the task's, or `answers` are not as in SQuAD.
    """
    has_label = task is not None or head == "sequence_classification"
    output = read_output(raw) if has_label else raw.get("output")
    if head == "question_answering":
        output = find_answer(raw.get("answers"))
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


def read_output(raw: dict[str, Any]) -> Any:
    """Return what answers a labelled row: its `output`, where it has none its `label`, or None."""
    output = raw.get("output")
    return raw.get("label") if output is None else output


def find_answer(answers: Any) -> str | None:
    """Return the first of SQuAD's answers, {text: [...], answer_start: [...]}, as one text."""
    match answers:
        case None:
            return None
        case {"text": [], "answer_start": []}:
            return ""
        case {"text": [str(text), *_], "answer_start": [int(start), *_]} if start >= 0:
            return json.dumps({"text": text, "answer_start": start})
    raise ValueError(f"expected answers: {{text: [...], answer_start: [...]}}, got {answers!r}")


def find_output(output: str | int | float, task: Task | None) -> str:
    """Return an output as text; a classification's labels may be numbered."""
    if task is None or task.kind == "generation":
        return str(output)
    if output in task.labels:
        return str(output)
    if isinstance(output, int) and 0 <= output < len(task.labels):
        return task.labels[output]
    raise ValueError(f"label {output!r} is none of {task.labels}")
