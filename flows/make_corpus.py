"""The recipe's corpus: each source, each labeller, then filters and packing.

`make_corpus` tells it once: a night walks it on its way to a student, `nightpress corpus build`
ends there, and `read_corpus` walks the same lines over what is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from prefect import flow

from flows.night import Night
from flows.publish_corpus import publish_corpus
from flows.recorded_night import run_recorded
from flows.run_record import (
    built_corpus,
    describe_run,
    make_report,
    write_run,
)
from infra.storage import Store
from tasks.corpus_stages import corpus_stage, label_stage, source_stage
from tasks.inputs import Inputs, find_inputs
from tasks.recipe import Recipe
from tasks.records import CorpusRef, ModelRef, RowsRef
from tasks.run_records import CorpusResult, CorpusStep, RunRecord
from tasks.stage import Stage, read_completion

Complete = Callable[[str, Stage, type[Any]], Any]
"""(title, stage, type of its record) -> the record."""


@flow(name="make corpus", flow_run_name="{recipe.name} corpus", persist_result=False)
def build_corpus(recipe: Recipe) -> RunRecord:
    """Make a recipe's corpus, and publish it where the recipe says so; nothing is trained.

    Raises:
        NightSkipped: a night of the recipe runs on its store.
        DeadlineReached: while this one waited for its end.
    """

    def work(night: Night) -> RunRecord:
        inputs = find_inputs(recipe, night.store)
        make_corpus(recipe, inputs, inputs.teacher, night.complete)
        return release_corpus(night, recipe, inputs)

    return run_recorded(recipe, [], work)


def make_corpus(recipe: Recipe, inputs: Inputs, teacher: ModelRef, complete: Complete) -> CorpusRef:
    """Complete the stages of a corpus.

    What a source has yielded is a stage of its own, so another filter generates nothing again.
    """
    rows: list[RowsRef] = []
    for number, (source, data) in enumerate(
        zip(recipe.corpus.sources, inputs.sources, strict=True), start=1
    ):
        stage = source_stage(recipe, number, teacher, data)
        rows.append(complete(f"source {number} {source.name}", stage, RowsRef))
    for number, label in enumerate(recipe.corpus.labels, start=1):
        stage = label_stage(recipe, number, teacher, rows)
        rows = [complete(f"label {number} {label.name}", stage, RowsRef)]
    stage = corpus_stage(recipe, teacher, rows, inputs.evaluation)
    corpus: CorpusRef = complete("corpus", stage, CorpusRef)
    return corpus


def read_corpus(recipe: Recipe, inputs: Inputs, store: Store) -> CorpusResult:
    """Return what is stored of a corpus; nothing is computed.

    Raises:
        LookupError: a stage of it is not stored; the message names the first.
    """
    steps: list[CorpusStep] = []
    refused: Counter[str] = Counter()
    spent: Counter[str] = Counter()

    def look_up(title: str, stage: Stage, record_type: type[Any]) -> Any:
        done = read_completion(store, stage)
        if done is None:
            raise LookupError(title)
        record = record_type(**done.record)
        if isinstance(record, RowsRef):
            first = stage.name == "source"  # a labeller's rows bring the accounts of all before
            own_refused = Counter(record.refused) - (Counter() if first else refused)
            own_spent = Counter(record.spent) - (Counter() if first else spent)
            refused.update(own_refused)
            spent.update(own_spent)
            steps.append(
                CorpusStep(
                    title=title,
                    num_rows=sum(record.num_rows),
                    refused=dict(own_refused),
                    spent=dict(own_spent),
                )
            )
        return record

    corpus = make_corpus(recipe, inputs, inputs.teacher, look_up)
    return CorpusResult(corpus=corpus, steps=steps)


def release_corpus(night: Night, recipe: Recipe, inputs: Inputs) -> RunRecord:
    """Publish a corpus where the recipe says so, and leave the run's record and report."""
    result = read_corpus(recipe, inputs, night.store)
    provenance = describe_run(night, recipe, inputs, result.corpus, None)
    record = built_corpus(night, recipe, result)
    if recipe.corpus.publish:
        report = make_report(night, recipe, record, provenance)
        result = publish_corpus(night, recipe, result, provenance, report)
        record = built_corpus(night, recipe, result)
    write_run(night, recipe, record, make_report(night, recipe, record, provenance))
    return record
