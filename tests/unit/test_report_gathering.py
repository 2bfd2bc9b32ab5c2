"""From stages that really ran to the page: two nights of a tiny model, in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local_executor import LocalExecutor
from infra.storage import FileStore
from tasks.evaluate.gate import check_gate, read_evaluated
from tasks.inputs import Inputs, find_inputs
from tasks.models.checkpoint import describe_model
from tasks.quality_records import Metrics
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe
from tasks.records import ModelRef
from tasks.report.gathering import gather_report
from tasks.report.report import write_report
from tasks.report.report_data import ReportData
from tasks.run_records import EvaluatedModel, ExportResult, RunRecord, StageResult
from tasks.stage import Stage, run_stage
from tasks.stages import evaluate_stage, inspect_stage


def spend_night(
    store: FileStore, recipe: Recipe, inputs: Inputs, day: int, export: ModelRef, folder: Path
) -> RunRecord:
    """Evaluate and look into the teacher and one export, and leave the run's record."""
    stages: list[StageResult] = []

    def complete(title: str, stage: Stage) -> dict[str, object]:
        done, cached = run_stage(stage, store, LocalExecutor(), lambda *_: None, folder)
        outcome = "cached" if cached else "computed"
        stages.append(
            StageResult.model_validate(
                {
                    "title": title,
                    "stage": stage.name,
                    "key": stage.key,
                    "outcome": outcome,
                    "seconds": done.seconds,
                    "nodes": done.nodes,
                }
            )
        )
        return done.record

    models = []
    for title, kind, model in (("teacher", "teacher", inputs.teacher), ("int4", "export", export)):
        found = complete(
            f"evaluate {title}", evaluate_stage(recipe, model, inputs.evaluation, inputs.tasks)
        )
        complete(f"inspect {title}", inspect_stage(recipe, model, inputs.evaluation))
        models.append(
            EvaluatedModel.model_validate(
                {
                    "title": title,
                    "kind": kind,
                    "made_by": None,
                    "model": model,
                    "metrics": Metrics.model_validate(found),
                }
            )
        )
    teacher, candidate = (read_evaluated(store, m.model, m.metrics) for m in models)
    gate = check_gate(recipe.gate, candidate, teacher, None)
    record = RunRecord(
        recipe=recipe.name,
        run_id=f"202611{day}T020000Z-abcdef",
        started=f"2026-11-{day}T02:00:00+00:00",
        seconds=9.0,
        status="done",
        store_uri=store.uri,
        channel="nightly",
        stages=stages,
        models=models,
        exports=[ExportResult(export="int4", gate=gate, outcome="published", artifact=None)],
        data={"evaluation": inputs.evaluation.digest},
    )
    prefix = f"runs/{recipe.name}/{record.run_id}"
    store.write(f"{prefix}/run.json", record.model_dump_json().encode())
    store.write(f"{prefix}/recipe.yaml", recipe.model_dump_json().encode())
    return record


@pytest.fixture(scope="module")
def second_night(
    recipe_text: str, make_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> ReportData:
    folder = tmp_path_factory.mktemp("nights")
    (folder / "recipe.yaml").write_text(recipe_text)
    recipe = load_recipe(folder / "recipe.yaml")
    store = FileStore(f"file://{folder / 'store'}")
    inputs = find_inputs(recipe, store)
    for day, seed in ((19, 1), (20, 2)):
        model = make_llama(seed)
        export = describe_model(model, str(model))
        record = spend_night(store, recipe, inputs, day, export, folder / "scratch")
    return gather_report(store, recipe, record, {"torch": "2"})


def test_looks_come_from_the_stages(second_night: ReportData) -> None:
    teacher, export = second_night.looks
    assert (teacher.title, export.title) == ("teacher", "int4")
    assert teacher.components and teacher.samples and export.samples
    assert teacher.samples.temperatures == [1.0, 2.0], "forward KL's own default"
    assert teacher.samples.continuations != export.samples.continuations


def test_the_night_before_is_found_and_told(second_night: ReportData) -> None:
    changes = second_night.changes
    assert changes is not None and changes.recipe == changes.data == []
    assert changes.other_stages == ["evaluate int4", "inspect int4"], "the teacher's were stored"
    assert changes.exports[0].nats is not None and not changes.exports[0].is_same
    assert [export.started for export in second_night.earlier] == ["2026-11-19 02:00 UTC"]


def test_the_page_is_whole(second_night: ReportData) -> None:
    page = write_report(second_night)
    for said in ("Since 2026-11-19 02:00 UTC", "What they expect next", "T = 2", "Pareto front"):
        assert said in page
    assert "own code or a library is another" in page
