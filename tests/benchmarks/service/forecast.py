"""`nightpress plan` against what then happened: two workers from one, and more work from less.

A night on one worker is measured. From it, the plan for two workers and the plan for more
sub-models and training tokens are made; then both nights run, each in a state folder of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.service.nights import QUICKSTART, command, run_night
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

MORE = {"steps__0__prune__num_submodels": 32, "steps__1__distill__num_tokens": 65536}
"""Four times the short quickstart's."""
QUESTIONS: dict[str, dict[str, Any]] = {
    "2 workers from 1": {"cluster__workers": 2},
    "4 times the sub-models and tokens": {"cluster__workers": 1} | MORE,
}


def run(subjects: list[Subject], scale: Any) -> list[Table]:
    cell = Cells("service", "forecast", scale.name).compute("nights", measure=measure)
    tables = []
    for question, stages in cell.items():
        if question == "code":
            continue
        whole = {"all": [sum(column) for column in zip(*stages.values(), strict=True)]}
        rows = [
            [title, *(f"{value:.1f}" for value in values), f"{values[1] / values[2] - 1:+.0%}"]
            for title, values in (stages | whole).items()
        ]
        header = ["stage", "1 worker, s", "predicted, s", "measured, s", "error"]
        tables.append(table(question, header, rows))
    return tables


def measure() -> Cell:
    """Return, by question and stage, the seconds of the first night, predicted, and measured."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first = seconds_by_title(run_night(place / "first", cluster__workers=1).document)
        plans = {
            "2 workers from 1": command(
                place / "first", "plan", QUICKSTART, "--cluster", "2xcpu", cluster__workers=1
            ),
            "4 times the sub-models and tokens": command(
                place / "first",
                "plan",
                QUICKSTART,
                "--cluster",
                "1xcpu",
                cluster__workers=1,
                **MORE,
            ),
        }
        cell: Cell = {}
        for number, (question, changed) in enumerate(QUESTIONS.items()):
            planned = seconds_by_title(plans[question].document)
            found = seconds_by_title(run_night(place / f"night{number}", **changed).document)
            cell[question] = {
                title: [first[title], planned[title], found[title]] for title in found
            }
        return cell


def seconds_by_title(document: dict[str, Any]) -> dict[str, float]:
    return {stage["title"]: stage["seconds"] for stage in document["stages"]}
