"""What is looked for: the words of a task."""

from __future__ import annotations

from tasks.corpus_options import Task
from tasks.errors import CorpusError


def task_query(task: Task | None, query: str | None) -> str:
    """Return the instruction, the examples, and what else a recipe looks for.

    Raises:
        CorpusError: there is none of these.
    """
    parts = [query or ""]
    if task:
        parts.append(task.instruction)
        for example in task.examples:
            parts += [example.text, example.text_pair or ""]
            if task.kind == "generation":
                parts.append(example.output)
    text = "\n".join(part for part in parts if part)
    if not text:
        raise CorpusError(
            "nothing to look for: the recipe has no task, and the source no query",
            "give the recipe a task with an instruction, or the source a query",
        )
    return text


def describe_words(found: list[str]) -> str:
    shown = ", ".join(found[:12]) or "none that is not a stop word"
    return f"the words {shown}" + (f" and {len(found) - 12} more" if len(found) > 12 else "")
