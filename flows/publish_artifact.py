"""After the last export: hold each against its gate, and publish those that pass."""

from __future__ import annotations

import getpass
from typing import NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.night import RETRIES, Night
from infra.storage import SCHEME, localize
from tasks.errors import QualityGateError
from tasks.evaluate.gate import check_gate, read_evaluated
from tasks.inputs import Inputs
from tasks.publish.channels import read_newest
from tasks.publish.load_check import Probe
from tasks.publish.manifest import read_model_manifest
from tasks.publish.provenance import Provenance
from tasks.publish.publishing import Publication, Regate, Release, is_stored, publish_export
from tasks.quality_records import GateReport, Metrics
from tasks.recipe import Recipe
from tasks.records import ArtifactRef, ModelRef
from tasks.run_records import EvaluatedModel, ExportResult
from tasks.stages import evaluate_stage


class Verdict(NamedTuple):
    """The gate's report on one export, and what the export was held against."""

    candidate: EvaluatedModel
    gate: GateReport
    champion: str | None
    """Digest of the artifact that the channel served; None where it served none."""


@task(
    task_run_name="gate {candidate.title}", cache_policy=NO_CACHE, persist_result=False, **RETRIES
)
def gate_export(
    night: Night,
    recipe: Recipe,
    inputs: Inputs,
    teacher: EvaluatedModel,
    candidate: EvaluatedModel,
) -> Verdict:
    """Hold an export against the teacher and against what its channel serves now."""
    newest = read_newest(night.store, recipe.name, candidate.title, recipe.publish.channel)
    champion = newest.digest if newest else None
    gate = judge(night, recipe, inputs, teacher, candidate, champion)
    return Verdict(candidate, gate, champion)


def judge(
    night: Night,
    recipe: Recipe,
    inputs: Inputs,
    teacher: EvaluatedModel,
    candidate: EvaluatedModel,
    champion_digest: str | None,
) -> GateReport:
    """Gate a candidate, evaluating the champion on the very same text first."""
    scored = read_evaluated(night.store, candidate.model, candidate.metrics)
    champion = scored if champion_digest == candidate.model.digest else None
    if champion_digest and champion is None:
        manifest = read_model_manifest(night.store, recipe.name, candidate.title, champion_digest)
        model = ModelRef(
            uri=f"{SCHEME}{manifest.prefix}/files",
            digest=manifest.digest,
            architecture=manifest.architecture,
            num_parameters=manifest.num_parameters,
            num_bytes=manifest.num_bytes,
        )
        stage = evaluate_stage(recipe, model, inputs.evaluation, inputs.tasks)
        metrics = night.complete(f"evaluate champion {candidate.title}", stage, Metrics)
        champion = read_evaluated(night.store, model, metrics)
    return check_gate(
        recipe.gate,
        scored,
        read_evaluated(night.store, teacher.model, teacher.metrics),
        champion,
    )


def expect_releases(night: Night, recipe: Recipe, models: list[EvaluatedModel]) -> None:
    """Start the process that will load the exports, if one of them is new, before it is asked."""
    exports = (model for model in models if model.kind == "export")
    if not all(
        is_stored(night.store, recipe.name, model.title, model.model.digest) for model in exports
    ):
        night.loader.start()


@task(
    task_run_name="publish {verdict.candidate.title}",
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def publish_artifact(
    night: Night,
    recipe: Recipe,
    inputs: Inputs,
    teacher: EvaluatedModel,
    verdict: Verdict,
    provenance: Provenance,
    report_html: str,
) -> ExportResult:
    """Publish an export that passed; record one that did not."""
    candidate = verdict.candidate
    name, reports = candidate.title, [verdict.gate]
    if not verdict.gate.passed:
        return ExportResult(export=name, gate=verdict.gate, outcome="refused", artifact=None)
    night.reporter.begin(f"publish {name}")

    def regate(champion: ArtifactRef) -> GateReport:
        reports.append(judge(night, recipe, inputs, teacher, candidate, champion.digest))
        return reports[-1]

    try:
        published = publish(night, recipe, verdict, provenance, report_html, regate)
    except QualityGateError:
        if reports[-1].passed:
            raise
        # Somebody published another champion meanwhile, and this export does not pass against it.
        return ExportResult(export=name, gate=reports[-1], outcome="refused", artifact=None)
    return ExportResult(
        export=name, gate=reports[-1], outcome=published.outcome, artifact=published.artifact
    )


def publish(
    night: Night,
    recipe: Recipe,
    verdict: Verdict,
    provenance: Provenance,
    report_html: str,
    regate: Regate,
) -> Publication:
    model, metrics = verdict.candidate.model, verdict.candidate.metrics
    evaluation = localize(night.store, metrics.documents_uri.rpartition("/")[0])
    return publish_export(
        night.store,
        Release(
            export=verdict.candidate.title,
            model=model,
            metrics=metrics,
            gate=verdict.gate,
            champion=verdict.champion,
            stages=night.results,
            provenance=provenance,
        ),
        Probe.model_validate_json((evaluation / "probe.json").read_bytes()),
        report_html,
        channel=recipe.publish.channel,
        by=getpass.getuser(),
        why=f"run {night.run_id} passed its gate",
        regate=regate,
        loader=night.loader,
        signing_key=night.settings.signing_key,
    )
