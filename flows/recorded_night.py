"""A night from its opening to its record: whatever its end, it is written down and told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from copy import copy
from functools import wraps

import httpx
from prefect import Flow
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker, emit_events_to_cloud

from flows.night import Night, open_night
from flows.notifying import announce, announce_killed, announce_unopened
from flows.prefect_artifacts import show_run
from flows.run_record import record_failure
from flows.stopping import DeadlineReached
from tasks.errors import ClusterError
from tasks.publish.run_history import killed_before
from tasks.recipe import Recipe
from tasks.run_records import EvaluatedModel, RunRecord


def run_recorded(
    recipe: Recipe, models: list[EvaluatedModel], work: Callable[[Night], RunRecord]
) -> RunRecord:
    """Do a night's work; leave a record and a report of a night that fails, too.

    A night that ends early frees its workers before anything else, and none is told of before
    its lease is given back: who is told may start the next one.

    Args:
        models: To which `work` adds what it has evaluated, for the record of a failure.
        work: Returns the record of a night that came to its end.

    Raises:
        NightSkipped: another night of the recipe runs on its store.
        DeadlineReached: while this one waited for its end.
    """
    record: RunRecord | None = None
    try:
        with open_night(recipe) as night:
            try:
                if killed := killed_before(night.store, recipe.name, night.run_id):
                    announce_killed(recipe, night.settings, killed)
                record = work(night)
            except BaseException as error:
                night.free_workers()
                record = record_failure(night, recipe, models, error)
                if not isinstance(error, DeadlineReached):
                    raise
    except Exception as error:
        if record is None:
            announce_unopened(recipe, error)
        raise
    finally:
        if record:
            show_run(record)
            announce(recipe, night.settings, record)
    assert record is not None
    return record


def run_flow(flow: Flow[[Recipe], RunRecord], recipe: Recipe) -> RunRecord:
    """Run a night as Prefect's flow; its own end counts, whether or not Prefect hears of it.

    Raises:
        ClusterError: Prefect's server does not answer, and the night has not begun.
    """
    night: Future[RunRecord] = Future()

    @wraps(flow.fn)
    def run(recipe: Recipe) -> RunRecord:
        try:
            night.set_result(flow.fn(recipe))
        except BaseException as error:
            night.set_exception(error)
        return night.result()

    watched = copy(flow)
    watched.fn = run
    if not emit_events_to_cloud():
        # More attempts would make each event of a night wait 7 s for a server that is gone.
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=2)
    try:
        return watched(recipe)
    except httpx.HTTPError as error:
        if not night.done():
            raise ClusterError(
                f"Prefect's server does not answer: {error}",
                "look at PREFECT_API_URL, or leave it unset: each run then brings its own server",
            ) from error
        print(
            f"nightpress: warning: Prefect's server was not told of the night's end: {error}",
            file=sys.stderr,
        )
        return night.result()
