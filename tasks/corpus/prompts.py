"""What a model is asked when it writes for a task: cases that are solved, then one that is open.

One wording serves models that chat and models that go on from a text: the request is in the first
lines, and the cases below show the form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from tasks.corpus_options import Example, Task

FOLLOW = Task(instruction="Follow the instruction that the input gives.")
"""The task of a corpus without one: its inputs are instructions."""

BORDER = "\n\n###\n"
STOPS = ("\n###", "\nInput:", "\nOutput:")
"""Where a model that goes on with the form begins another field or case."""


class Input(NamedTuple):
    text: str
    text_pair: str | None


def render_input(example: Example) -> str:
    pair = "" if example.text_pair is None else f"\nSecond input: {example.text_pair}"
    return f"Input: {example.text}{pair}"


def ask_input(task: Task, shown: list[Example]) -> str:
    """Ask for one more input of the task."""
    request = "Write one more input for this task, unlike those below. Answer with it alone."
    return join_cases(task, request, [*map(render_input, shown), "Input:"])


def ask_input_for(task: Task, shown: list[Example], label: str) -> str:
    """Ask for one more input of a classification, for which the label is right."""
    request = (
        f"Write one more input for this task, unlike those below, for which the output "
        f"{label!r} is right. Answer with it alone."
    )
    cases = (f"Output: {example.output}\n{render_input(example)}" for example in shown)
    return join_cases(task, request, [*cases, f"Output: {label}\nInput:"])


def ask_output(task: Task, shown: list[Example], asked: Input) -> str:
    """Ask for the output that is right for an input."""
    request = (
        f"Answer with one of these outputs alone: {', '.join(task.labels)}."
        if task.labels
        else "Answer with the output alone."
    )
    cases = (f"{render_input(example)}\nOutput: {example.output}" for example in shown)
    last = render_input(Example(text=asked.text, text_pair=asked.text_pair, output=""))
    return join_cases(task, request, [*cases, f"{last}\nOutput:"])


def join_cases(task: Task, request: str, cases: Iterable[str]) -> str:
    return BORDER.join([f"{task.instruction.strip()}\n\n{request}", *cases])


def parse_input(text: str, paired: bool) -> Input | None:
    """Return the input that a completion gives, or None where it gives none.

    Args:
        paired: Whether the task is about two texts.
    """
    text = re.sub(r"^\s*Input:", "", text)
    if not paired:
        return Input(text.strip(), None) if text.strip() else None
    first, mark, second = text.partition("\nSecond input:")
    if not (mark and first.strip() and second.strip()):
        return None
    return Input(first.strip(), second.strip())


def parse_output(text: str) -> str:
    return re.sub(r"^\s*Output:", "", text).strip()


def find_label(text: str, labels: list[str]) -> str | None:
    """Return the label that a completion's first line gives, whatever its case and punctuation."""
    line = parse_output(text).partition("\n")[0]
    said = line.strip(" .,:;!*\"'`").casefold()
    return next((label for label in labels if label.casefold() == said), None)
