"""What a night leaves behind under `runs/`: its record and its report, whatever its end."""

import sys

from flows.costs import cost_of_night
from flows.night import Night
from flows.publish_artifact import Verdict
from flows.renew_catalogue import renew_catalogue
from flows.stopping import DeadlineReached, is_cancellation
from infra.redaction import redact
from infra.storage import localize
from tasks.errors import CompressionError
from tasks.inputs import Inputs
from tasks.publish.provenance import Provenance, gather_provenance
from tasks.quality_records import Metrics
from tasks.recipe import Recipe
from tasks.records import CorpusRef, DataRef, TextRef
from tasks.report.gathering import gather_report
from tasks.report.plain_report import write_plain_report
from tasks.report.report import write_report
from tasks.run_records import CorpusResult, EvaluatedModel, ExportResult, RunRecord


def finished_run(
    night: Night,
    recipe: Recipe,
    models: list[EvaluatedModel],
    exports: list[ExportResult],
    corpus: CorpusResult,
    data: dict[str, str],
) -> RunRecord:
    outcomes: set[str] = {export.outcome for export in exports}
    if corpus.published:
        outcomes.add(corpus.published.outcome)
    if "refused" in outcomes:
        status = "refused"
    else:
        status = "done" if "published" in outcomes else "unchanged"
    return make_record(
        night, recipe, status=status, models=models, exports=exports, corpus=corpus, data=data
    )


def built_corpus(night: Night, recipe: Recipe, corpus: CorpusResult) -> RunRecord:
    """Record a run that made a corpus and no model."""
    computed = any(stage.outcome == "computed" for stage in night.results)
    published = corpus.published is not None and corpus.published.outcome == "published"
    status = "done" if computed or published else "unchanged"
    return make_record(night, recipe, status=status, models=[], exports=[], corpus=corpus)


def record_failure(
    night: Night, recipe: Recipe, models: list[EvaluatedModel], error: BaseException
) -> RunRecord:
    """Leave what was reached before an error, the deadline, or a signal to stop."""
    status, said = describe_end(error)
    record = make_record(
        night,
        recipe,
        status=status,
        models=models,
        exports=[],
        error=redact(said, (hook.webhook_env for hook in recipe.notify)),
    )
    try:
        # First what needs no reading: where the store is what failed, this is the end of it.
        write_record(night, recipe, record)
        write_run(night, recipe, record, make_report(night, recipe, record, None))
    except Exception as second:  # the store itself may be what failed
        print(f"nightpress: the run's record was not written: {second}", file=sys.stderr)
    return record


def describe_end(error: BaseException) -> tuple[str, str]:
    """Return the status of a run that something ended early, and what is said of it."""
    if isinstance(error, DeadlineReached):
        return "deadline", str(error)
    if is_cancellation(error):
        return "cancelled", "cancelled before its end"
    return "failed", f"{type(error).__name__}: {error}"


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
            "cost": cost_of_night(recipe, night.results),
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
    """Draw the report; where that goes wrong, the record itself is shown: a night is worth more
    than its picture.

    Raises:
        CompressionError: the store does not answer, or holds something else than was written.
    """
    versions = provenance.libraries if provenance else {}
    try:
        return write_report(gather_report(night.store, recipe, record, versions))
    except (CompressionError, OSError):
        raise
    except Exception as error:
        reason = f"the report could not be drawn: {type(error).__name__}: {error}"
        print(f"nightpress: warning: {reason}", file=sys.stderr)
        return write_plain_report(record, reason)


def write_run(night: Night, recipe: Recipe, record: RunRecord, report: str) -> None:
    """Write a run's report, its record, and the catalogue as it is by then."""
    prefix = f"runs/{recipe.name}/{night.run_id}"
    night.store.write(f"{prefix}/report.html", report.encode())
    write_record(night, recipe, record)
    renew_catalogue(night.store)


def write_record(night: Night, recipe: Recipe, record: RunRecord) -> None:
    key = f"runs/{recipe.name}/{night.run_id}/run.json"
    night.store.write(key, record.model_dump_json(indent=1).encode())


def describe_run(
    night: Night,
    recipe: Recipe,
    inputs: Inputs,
    corpus: CorpusRef,
    teacher_metrics: Metrics | None,
) -> Provenance:
    """Say where all artifacts of this run come from."""
    texts: dict[str, TextRef | DataRef] = {
        "calibration": inputs.calibration,
        "evaluation": inputs.evaluation,
    }
    for number, data in enumerate(inputs.sources, start=1):
        texts |= {f"source {number} {option}": ref for option, ref in data.items()}
    students = {f"student {named.model}": ref for named, ref in inputs.students.items() if named}
    return gather_provenance(
        recipe,
        inputs.teacher,
        localize(night.store, inputs.teacher.uri),
        teacher_metrics,
        {name: ref.digest for name, ref in {**texts, **students}.items()},
        corpus,
    )
