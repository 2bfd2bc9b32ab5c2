"""A corpus is not gated: where the recipe says `corpus.publish`, its rows are published."""

from __future__ import annotations

import getpass

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.night import RETRIES, Night
from tasks.publish.data_publishing import publish_data
from tasks.publish.provenance import Provenance
from tasks.recipe import Recipe
from tasks.run_records import CorpusResult


@task(task_run_name="publish corpus", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def publish_corpus(
    night: Night, recipe: Recipe, result: CorpusResult, provenance: Provenance, report_html: str
) -> CorpusResult:
    """Publish the rows as a data set; return the result that says so."""
    night.reporter.begin("publish corpus")
    published = publish_data(
        night.store,
        result,
        night.results,
        provenance,
        report_html,
        channel=recipe.publish.channel,
        by=getpass.getuser(),
        why=f"run {night.run_id} built it",
        signing_key=night.settings.signing_key,
    )
    return result.model_copy(update={"published": published})
