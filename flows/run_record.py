"""What a night leaves behind under `runs/`: its record and its report, whatever its end."""

import sys

from flows.night import Night
from flows.publish_artifact import Verdict
from flows.stopping import DeadlineReached
from infra.storage import localize
from tasks.inputs import Inputs
from tasks.publish.provenance import Provenance, gather_provenance
from tasks.recipe import Recipe
from tasks.records import EvaluatedModel, ExportResult, RunRecord
from tasks.report.gathering import gather_report
from tasks.report.report import write_report


def finished_run(
    night: Night, recipe: Recipe, models: list[EvaluatedModel], exports: list[ExportResult]
) -> RunRecord:
    outcomes = {export.outcome for export in exports}
    if "refused" in outcomes:
        status = "refused"
    else:
        status = "done" if "published" in outcomes else "unchanged"
    return make_record(night, recipe, status=status, models=models, exports=exports)


def record_failure(
    night: Night, recipe: Recipe, models: list[EvaluatedModel], error: BaseException
) -> RunRecord:
    """Leave what was reached before an error or the deadline."""
    stopped = isinstance(error, DeadlineReached)
    record = make_record(
        night,
        recipe,
        status="deadline" if stopped else "failed",
        models=models,
        exports=[],
        error=str(error) if stopped else f"{type(error).__name__}: {error}",
    )
    try:
        write_run(night, recipe, record, make_report(night, recipe, record, None))
    except Exception as second:  # the store itself may be what failed
        print(f"nightpress: the run's record was not written: {second}", file=sys.stderr)
    return record


def make_record(night: Night, recipe: Recipe, **ending: object) -> RunRecord:
    return RunRecord.model_validate(
        {
            "recipe": recipe.name,
            "run_id": night.run_id,
            "started": night.started,
            "seconds": night.seconds,
            "store_uri": night.store.uri,
            "channel": recipe.publish.channel,
            "stages": night.results,
        }
        | ending
    )


def expected_results(verdicts: list[Verdict]) -> list[ExportResult]:
    """What publishing will come to, for the report that travels with the artifacts."""
    return [
        ExportResult(
            export=verdict.candidate.title,
            gate=verdict.gate,
            outcome="published" if verdict.gate.passed else "refused",
            artifact=None,
        )
        for verdict in verdicts
    ]


def make_report(
    night: Night, recipe: Recipe, record: RunRecord, provenance: Provenance | None
) -> str:
    versions = provenance.libraries if provenance else {}
    return write_report(gather_report(night.store, recipe, record, versions))


def write_run(night: Night, recipe: Recipe, record: RunRecord, report: str) -> None:
    prefix = f"runs/{recipe.name}/{night.run_id}"
    night.store.write(f"{prefix}/report.html", report.encode())
    night.store.write(f"{prefix}/run.json", record.model_dump_json(indent=1).encode())


def describe_run(
    night: Night, recipe: Recipe, inputs: Inputs, teacher: EvaluatedModel
) -> Provenance:
    """Say where all artifacts of this run come from."""
    texts = {"calibration": inputs.calibration, "evaluation": inputs.evaluation} | inputs.texts
    return gather_provenance(
        recipe,
        inputs.teacher,
        localize(night.store, inputs.teacher.uri),
        teacher.metrics,
        {name: text.digest for name, text in texts.items()},
    )
