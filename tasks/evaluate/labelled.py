"""Rows with a label: what a labelled file may hold, and which class each label is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tasks.corpus.examples import Labels, find_label
from tasks.corpus.rows import read_output, read_rows
from tasks.errors import CorpusError
from tasks.evaluation_options import OF_SCORES
from tasks.models.model_kind import head_kind


class LabelledRow(NamedTuple):
    text: str
    text_pair: str | None
    label: str | float
    """A class's name or number; of a regression, the score."""


def read_labelled(path: Path) -> list[LabelledRow]:
    """Read all rows of a labelled JSONL file.

    Raises:
        CorpusError: there is no row, or one is not JSON, or lacks a text or a label.
    """
    rows = []
    for number, raw in enumerate(read_rows(path), start=1):
        text, pair, label = raw.get("text"), raw.get("text_pair"), read_output(raw)
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise CorpusError(
                f"{path}: row {number}: expected a text, and where it is a pair a "
                f"text_pair, got {text!r} and {pair!r}"
            )
        if not isinstance(label, str | int | float):
            raise CorpusError(
                f"{path}: row {number}: expected a label, a name or a number, got {label!r}"
            )
        rows.append(LabelledRow(text, pair, label))
    if not rows:
        raise CorpusError(f"{path} has no rows")
    return rows


def number_labels(rows: list[LabelledRow], labels: list[str], where: str) -> list[float]:
    """Return each row's class by its label's name or number, as in training.

    Args:
        labels: In their order; none of a regression, whose rows have scores.
        where: What an error names.

    Raises:
        CorpusError: a label is none of them, or a score is not a finite number.
    """
    ids = {name: number for number, name in enumerate(labels)}
    known = Labels("sequence_classification", ids, are_scores=not labels)
    try:
        return [find_label(str(row.label), known) for row in rows]
    except ValueError as error:
        raise CorpusError(
            f"{where}: {error}",
            "name the model's outputs in their order, as the rows do: `labels: [...]`, or of a "
            "causal language model the keys of `verbalizers`; a regression's rows have scores",
        ) from None


def name_labels(task: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Return the labels that a model tells apart in a task, in order; none of a regression.

    Args:
        task: A `LabelledTask` as a mapping.
        config: The model's config.json.

    Raises:
        ValueError: this model cannot do the task, or not with these metrics.
    """
    where = f"evaluation.tasks: {task['name']}"
    kind = head_kind((config.get("architectures") or [""])[0])
    if kind == "causal_lm":
        if not task["verbalizers"]:
            raise ValueError(
                f"{where}: a causal language model is asked in words; expected prompt and "
                'verbalizers, such as prompt: "{text}\nSentiment:" and verbalizers: '
                '{"0": " bad", "1": " good"}'
            )
        labels = list(task["verbalizers"])
    elif kind == "sequence_classification":
        own = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        labels = task["labels"] or [own[number] for number in sorted(own, key=int)]
        if len(labels) != len(own):
            raise ValueError(f"{where}: the model tells {len(own)} labels apart, got {labels}")
        if config.get("problem_type") == "multi_label_classification":
            raise ValueError(f"{where}: expected a model with one label for a row, got several")
        labels = [] if len(own) == 1 or config.get("problem_type") == "regression" else labels
    else:
        raise ValueError(f"{where}: expected a classifier or a causal language model, got {kind}")
    check_metrics(task["metrics"], labels, where)
    return labels


def check_metrics(metrics: list[str], labels: list[str], where: str) -> None:
    """Raises: ValueError: a metric of classes for a regression, or the other way round, or F1 of
    one class among more than two."""
    for metric in metrics:
        if (metric in OF_SCORES) == bool(labels):
            kind = f"tells {labels} apart" if labels else "is a regression"
            raise ValueError(f"{where}: the model {kind}, which {metric} is not for")
        if metric == "f1" and len(labels) != 2:
            raise ValueError(f"{where}: f1 is of two labels, got {labels}; use f1_macro")
