"""What a student learns from retrieved rows, generated ones, both, and pseudo-labelled ones.

The claim that is looked into: both together are at or above either (Viswanathan et al. 2023,
Prompt2Model, arXiv:2308.12261).
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from tasks.errors import CorpusError
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.data import classifier
from tests.benchmarks.data.corpora import Built, build, local_text, self_instruct
from tests.benchmarks.data.labelled_tasks import (
    GOLD_ROWS,
    SEEDS,
    Case,
    LabelledTask,
    Trial,
    draw,
    find_tasks,
    write_rows,
)
from tests.benchmarks.data.scale import Scale
from tests.benchmarks.data.writer import teach_writer
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

ROWS = {"full": 400, "smoke": 16}
"""Generated, and retrieved."""
ASKED_ROWS = {"full": 200, "smoke": 10}
"""Of the test's, the first, that the generator itself labels."""
GENERATOR = [
    "before fine-tuning, zero-shot",
    "before fine-tuning, few-shot",
    "fine-tuned, zero-shot",
]


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("data", "students", scale.name)
    tables = []
    for task in find_tasks(scale):
        measured = [
            cells.compute(
                task.own_entry, seed, measure=partial(measure, task, seed, subjects[-1], scale)
            )
            for seed in SEEDS[scale.name]
        ]
        tables += [
            table(
                f"{task.name}: accuracy on {len(task.test)} test rows, %, of "
                f"{classifier.describe()}; {len(measured)} seed(s)",
                ["trained on", "rows", "labels right, %", "accuracy", "spread"],
                [describe(name, measured) for name in measured[0]["students"]],
            ),
            table(
                f"{task.name}: the generator, {subjects[-1].name}, itself on the first "
                f"{ASKED_ROWS[scale.name]} test rows, %",
                ["asked", "accuracy", "spread"],
                [
                    [name, *spread([100 * cell["generator"][name] for cell in measured])]
                    for name in GENERATOR
                ],
            ),
        ]
        if reason := measured[0]["not_retrieved"]:
            tables.append(table(f"{task.name}: why nothing is retrieved", ["error"], [[reason]]))
    if not tables:
        tables.append(table("not measured", ["why"], [["$NIGHTPRESS_BENCH_DATA is not set"]]))
    return tables


def describe(name: str, cells: list[Cell]) -> list[str]:
    found = [cell["students"][name] for cell in cells]
    if found[0] is None:
        return [name, "0", "", "none retrieved", ""]
    right = [100 * each["labels_right"] for each in found if each["labels_right"] is not None]
    rows = f"{np.mean([each['rows'] for each in found]):.0f}"
    accuracy = spread([100 * each["accuracy"] for each in found])
    return [name, rows, f"{np.mean(right):.1f}" if right else "", *accuracy]


def spread(values: list[float]) -> list[str]:
    """Return the mean, and the largest less the smallest."""
    return [f"{np.mean(values):.1f}", f"{max(values) - min(values):.1f}"]


def measure(task: LabelledTask, seed: int, subject: Subject, scale: Scale) -> Cell:
    trial = draw(task, seed, scale)
    writer = teach_writer(trial, subject.folder, scale.name)
    made, not_retrieved = build_both(trial, writer, ROWS[scale.name])
    generated, retrieved = made.cases("self_instruct"), made.cases("data_sets")
    rng = random.Random(seed)
    mixed = [
        *rng.sample(generated, len(generated) // 2),
        *rng.sample(retrieved, len(retrieved) // 2),
    ]
    rules = {"name": "rules", "options": {"rules": task.rules}}
    unlabelled = [local_text(trial.path("unlabelled"))]
    ruled = build(trial, writer, unlabelled, [rules])
    trained = build(trial, writer, unlabelled, [rules, {"name": "self_training"}])
    students = {
        "(a) retrieved only": judge(trial, retrieved),
        "(b) generated only": judge(trial, generated),
        "(c) both": judge(trial, [*retrieved, *generated]) if retrieved else None,
        "half of each": judge(trial, mixed) if retrieved else None,
        "rows labelled by rules": judge_labels(trial, ruled),
        "(d) by rules, then self-training": judge_labels(trial, trained),
        f"the {GOLD_ROWS} rows that the generator knows": judge(trial, trial.gold),
        "these, and all retrieved and generated": judge(
            trial, [*trial.gold, *retrieved, *generated]
        ),
        f"{len(trial.ceiling)} rows labelled by people": judge(trial, trial.ceiling),
        "the commonest label": judge(trial, commonest(trial)),
    }
    generator = ask_generator(trial, subject.folder, writer, ASKED_ROWS[scale.name])
    return {
        "students": students,
        "generator": dict(zip(GENERATOR, generator, strict=True)),
        "not_retrieved": not_retrieved,
        "refused": made.corpus.refused,
        "dropped": made.corpus.dropped,
        "outputs": made.corpus.outputs,
    }


def build_both(trial: Trial, writer: Path, num_rows: int) -> tuple[Built, str | None]:
    """Return generated and retrieved rows, or the generated alone and why nothing was found."""
    generated = self_instruct(trial, num_rows, "output_first")
    options = {
        "catalogue": str(trial.folder / "catalogue.yaml"),
        "rows_per_data_set": num_rows,
        "exclude": trial.task.own_entry,
    }
    sources = [generated, {"name": "data_sets", "options": options}]
    examples = trial.examples()
    try:
        return build(trial, writer, sources, examples=examples), None
    except CorpusError as error:
        reason = str(error).partition(" Found:")[0]
        return build(trial, writer, [generated], examples=examples), reason


def commonest(trial: Trial) -> list[Case]:
    (label, _), *_ = Counter(case["output"] for case in trial.gold).most_common(1)
    return trial.first(label, 1)


def judge(trial: Trial, training: list[Case]) -> Cell | None:
    if not training:
        return None
    accuracy = classifier.measure_accuracy(training, trial.task.test)
    return {"rows": len(training), "accuracy": accuracy, "labels_right": None}


def judge_labels(trial: Trial, built: Built) -> Cell | None:
    """Judge rows whose labels a labeller gave; those that it left without one are dropped."""
    truth = {case["text"]: case["output"] for case in trial.unlabelled}
    cases = built.cases()
    right = float(np.mean([truth[case["text"]] == case["output"] for case in cases]))
    return (judge(trial, cases) or {}) | {"labels_right": right}


def ask_generator(trial: Trial, base: Path, writer: Path, num_rows: int) -> list[float]:
    """Return how often a model's likeliest label is right, in the order of `GENERATOR`."""
    asked = trial.task.test[:num_rows]
    write_rows(trial.path("asked"), ({"text": case["text"]} for case in asked))
    shown = [c for label in trial.task.labels for c in trial.first(label, trial.task.shots)]
    random.Random(trial.seed).shuffle(shown)
    cases = (f"Input: {case['text']}\nOutput: {case['output']}" for case in shown)
    few = "\n\n".join([trial.task.instruction, *cases])
    labeller = {"name": "pseudo_labels", "options": {"min_confidence": 0.0}}
    return [
        score(
            build(
                trial,
                model,
                [local_text(trial.path("asked"))],
                [labeller],
                filters=(),
                instruction=instruction,
            ).cases(),
            asked,
        )
        for model, instruction in (
            (base, trial.task.instruction),
            (base, few),
            (writer, trial.task.instruction),
        )
    ]


def score(labelled: list[Case], asked: list[Case]) -> float:
    """Return the share of the rows asked about that got the right label."""
    given = {case["text"]: case["output"] for case in labelled}
    return float(np.mean([given.get(case["text"]) == case["output"] for case in asked]))
