"""A night from its opening to its record: whatever its end, it is written down and told."""

from __future__ import annotations

from collections.abc import Callable

from flows.night import Night, open_night
from flows.notifying import announce
from flows.run_record import record_failure
from flows.stopping import DeadlineReached
from tasks.recipe import Recipe
from tasks.records import EvaluatedModel, RunRecord


def run_recorded(
    recipe: Recipe, models: list[EvaluatedModel], work: Callable[[Night], RunRecord]
) -> RunRecord:
    """Do a night's work; leave a record and a report of a night that fails, too.

    Args:
        models: To which `work` adds what it has evaluated, for the record of a failure.
        work: Returns the record of a night that came to its end.

    Raises:
        NightSkipped: another night of the recipe runs on its store.
        DeadlineReached: while this one waited for its end.
    """
    with open_night(recipe) as night:
        try:
            record = work(night)
        except DeadlineReached as error:
            record = record_failure(night, recipe, models, error)
        except BaseException as error:
            announce(recipe, night.settings, record_failure(night, recipe, models, error))
            raise
        announce(recipe, night.settings, record)
        return record
