"""Score labelled files with one model, in units of rows that workers share."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.evaluate.labelled import (
    LabelledRow,
    name_labels,
    number_labels,
    read_labelled,
)
from tasks.evaluate.predicting import ScoreRows, judge_rows, score_by_head, score_by_prompt
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.models.folder import load_config

if TYPE_CHECKING:
    from tasks.records import ModelRef
    from tasks.stage_space import StageSpace

ROWS_PER_UNIT = 64


class LabelledFile(NamedTuple):
    """Rows, and how a model is asked about them."""

    uri: str
    task: dict[str, Any]
    """A `LabelledTask` as a mapping."""


class Questions(NamedTuple):
    """One labelled file, read."""

    rows: list[LabelledRow]
    gold: list[float]
    """[num_rows] class numbers, or a regression's scores."""
    score: ScoreRows


class RowJudge(NamedTuple):
    """A worker's state."""

    model: Any
    tokenizer: Any
    files: list[Questions]


class Judgement(NamedTuple):
    """What a model made of a labelled file; each list has an entry per row."""

    gold: list[float]
    predicted: list[float]
    nats: list[float]
    num_cut: int

    def join(self, later: Judgement) -> Judgement:
        return Judgement(
            self.gold + later.gold,
            self.predicted + later.predicted,
            self.nats + later.nats,
            self.num_cut + later.num_cut,
        )


def judge_files(
    space: StageSpace,
    options: dict[str, Any],
    model: ModelRef,
    files: list[LabelledFile],
    group: str,
) -> list[Judgement]:
    """Score every row of some labelled files.

    Args:
        group: Of the units of work.

    Raises:
        ValueError: the model cannot do a task.
        CorpusError: a row has no label that the task knows.
    """
    config = load_config(space.local(model.uri))
    for file in files:
        name_labels(file.task, config)
    lengths = [len(read_labelled(space.local(file.uri))) for file in files]
    units = [
        (number, start)
        for number, length in enumerate(lengths)
        for start in range(0, length, ROWS_PER_UNIT)
    ]
    state = partial(row_judge, space.localizer, model.uri, files, options)
    results = space.compute_units(judge_unit, units, state, group=group)
    judged = [Judgement([], [], [], 0) for _ in files]
    for (number, _), result in zip(units, results, strict=True):
        judged[number] = judged[number].join(Judgement(**json.loads(result)))
    return judged


def row_judge(
    localize: Callable[[str], Path],
    model_uri: str,
    files: list[LabelledFile],
    options: dict[str, Any],
) -> RowJudge:
    folder = localize(model_uri)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, "auto", options["trust_remote_code"])
    return RowJudge(
        model,
        tokenizer,
        [
            read_questions(localize(file.uri), file.task, model, tokenizer, options["window"])
            for file in files
        ],
    )


def read_questions(
    path: Path, task: dict[str, Any], model: Any, tokenizer: Any, window: int
) -> Questions:
    rows, where = read_labelled(path), f"evaluation.tasks: {task['name']}"
    labels = name_labels(task, model.config.to_dict())
    gold = number_labels(rows, labels, where)
    score: ScoreRows = partial(score_by_head, model, tokenizer, window)
    if task["verbalizers"]:
        said = list(task["verbalizers"].values())
        score = partial(score_by_prompt, model, tokenizer, window, task["prompt"], said)
    return Questions(rows, gold, score)


def judge_unit(judge: RowJudge, unit: tuple[int, int]) -> bytes:
    """Score one unit's rows; return a `Judgement` as JSON."""
    number, start = unit
    file, span = judge.files[number], slice(start, start + ROWS_PER_UNIT)
    found = judge_rows(file.score, file.rows[span], file.gold[span])
    return json.dumps(Judgement(file.gold[span], *found)._asdict()).encode()
