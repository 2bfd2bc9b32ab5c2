"""What a run would do: which stages are stored, which would be computed, and what they cost.

How long a stage takes is told from its own record, else from the newest night that computed it with
other options, else by arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flows.compress_model import compress, inspect
from flows.costs import HOUR_S
from flows.devices import Cluster, Device
from flows.forecast import Measured, forecast
from flows.make_corpus import make_corpus
from flows.measured_nights import is_telling, last_measured, own_cluster
from flows.operations import computes_in_half, count_operations
from flows.worker_memory import estimate_peak
from infra.storage import Store
from tasks.inputs import Inputs
from tasks.plugins import plugin_constant
from tasks.recipe import Recipe
from tasks.records import CorpusRef, ModelRef, Record
from tasks.report.wording import describe_amount
from tasks.run_records import EvaluatedModel, RunRecord
from tasks.stage import Completion, Stage, read_completion

UNKNOWN = "unknown"
"""Digest of a record that a stage not yet computed would return."""

BITS = (32, 16, 8, 4, 3, 2, 1)
GPU_MEMORY_GB = (8, 16, 24, 48, 80, 141)


class PlannedStage(Record):
    title: str
    outcome: Literal["cached", "to compute", "follows"]
    """`follows`: it depends on a stage to compute, so its key is not known yet."""
    seconds: float | None
    """As `basis` says; None where there is nothing to go by."""
    basis: Literal["stored", "measured", "arithmetic", "nothing"]
    """`stored`: what its record says. `measured`: scaled from a record, its own or that of the
    newest night that has one. `arithmetic`: from its floating-point operations alone."""
    peak_bytes: int | None = None
    """Memory of one worker at its peak; measured or estimated in the same way."""
    workers: int
    """That work at a time."""
    note: str = ""
    """Of a prune step, the shape that it cut to, or what the run will solve it for; and whether a
    worker needs more memory than the cluster's devices have."""


class WeightBytes(Record):
    bits: int
    num_bytes: int
    smallest_gpu_gb: int | None
    """Smallest common GPU memory that holds the weights; None where none does."""


class Plan(Record):
    stages: list[PlannedStage]
    weights: list[WeightBytes]
    seconds_to_compute: float
    """Of all stages, where `cluster` is not the recipe's own: there nothing is stored yet."""
    cluster: str
    """Number and kind of the workers, such as `8xH100`."""
    price: float | None
    """Of the whole cluster for that long; None where no worker's is known."""
    currency: str


def make_plan(
    recipe: Recipe,
    inputs: Inputs,
    store: Store,
    corpus_alone: bool = False,
    history: Sequence[RunRecord] = (),
    elsewhere: Cluster | None = None,
    worker_hour: float | None = None,
) -> Plan:
    """Walk the recipe, or its corpus alone, against the store; nothing is computed, and nothing
    heavy is imported.

    Args:
        history: Nights of the recipe, the newest first, to be measured by.
        elsewhere: Plan all stages for this cluster instead of the missing ones for the recipe's.
        worker_hour: Price, in the recipe's currency, instead of the recipe's.
    """
    planned: list[PlannedStage] = []
    cluster = elsewhere or own_cluster(recipe, history)

    def look_up(title: str, stage: Stage, record_type: type[Any]) -> Any:
        known = all(record.digest != UNKNOWN for record in stage.inputs.values())
        done = read_completion(store, stage) if known else None
        stage_plan = PlannedStage(
            title=title,
            outcome="cached" if done else "to compute" if known else "follows",
            seconds=done.seconds if done else None,
            basis="stored",
            peak_bytes=done.peak_bytes
            if done
            else estimate_peak(recipe, stage, inputs.teacher, store),
            workers=count_workers(stage, cluster.num_workers),
            note=describe_shape(stage, done),
        )
        if elsewhere or not done:
            measured = last_measured(history, title, stage.name)
            if done and is_telling(done.effort):
                measured = Measured(done.seconds, done.effort, count_operations(stage))
            stage_plan = foresee(stage_plan, stage, measured, cluster)
        if elsewhere:
            stage_plan = check_room(stage_plan, cluster.device)
        planned.append(stage_plan)
        if done:
            return record_type(**done.record)
        return placeholder(record_type, title, inputs.teacher, history)

    if corpus_alone:
        make_corpus(recipe, inputs, inputs.teacher, look_up)
    else:
        models: list[EvaluatedModel] = []
        compress(recipe, inputs, look_up, models)
        inspect(recipe, inputs, look_up, models)
    seconds = sum(s.seconds or 0 for s in planned if elsewhere or s.outcome != "cached")
    rate = recipe.cost.worker_hour if worker_hour is None else worker_hour
    return Plan(
        stages=planned,
        weights=[weight_bytes(inputs.teacher.num_parameters, bits) for bits in BITS],
        seconds_to_compute=round(seconds, 1),
        cluster=str(cluster),
        price=None if rate is None else round(seconds / HOUR_S * cluster.num_workers * rate, 4),
        currency=recipe.cost.currency,
    )


def foresee(
    plan: PlannedStage, stage: Stage, measured: Measured | None, cluster: Cluster
) -> PlannedStage:
    """Return the plan of a stage with its time on a cluster."""
    operations, in_half = count_operations(stage), computes_in_half(stage)
    seconds = forecast(operations, in_half, measured, cluster, plan.workers)
    if seconds is None:
        return plan.model_copy(update={"seconds": None, "basis": "nothing"})
    basis = "measured" if measured else "arithmetic"
    return plan.model_copy(update={"seconds": round(seconds, 1), "basis": basis})


def check_room(plan: PlannedStage, device: Device) -> PlannedStage:
    """Note where a worker needs more memory than its device has."""
    if not device.memory_gb or (plan.peak_bytes or 0) <= device.memory_gb * 1e9:
        return plan
    said = f"more than the {device.memory_gb:g} GB of a {device.name}"
    return plan.model_copy(update={"note": f"{plan.note}; {said}" if plan.note else said})


def describe_shape(stage: Stage, done: Completion | None) -> str:
    """Say what shape a prune step cut to, or what of it is known from its options alone."""
    if stage.name != "prune":
        return ""
    if done:
        return str(done.record.get("facts", {}).get("shape", ""))
    amount = describe_amount(stage.options)
    if stage.options["budget"]:
        return f"{amount}; the shape is solved in the run"
    return f"{amount}, {stage.options['shape']} shape"


def placeholder(
    record_type: type[Any], title: str, teacher: ModelRef, history: Sequence[RunRecord]
) -> Any:
    """Stand in for a record that is not known yet: as large as an earlier night's, else, of a
    student, half its teacher."""
    if record_type is ModelRef:
        made = (m.model for run in history for m in run.models if m.made_by == title)
        size = next((model.num_parameters for model in made), teacher.num_parameters // 2)
        return teacher.model_copy(update={"digest": UNKNOWN, "num_parameters": size})
    built = next((run.corpus.corpus for run in history if run.corpus), None)
    if record_type is CorpusRef and built:
        return built.model_copy(update={"digest": UNKNOWN})
    return record_type.model_construct(digest=UNKNOWN)


def count_workers(stage: Stage, num_workers: int) -> int:
    """Return how many workers a stage can use: a method that looks at text takes one block after
    the other."""
    if stage.name == "inspect":
        return 1
    if stage.name == "quantize" and not stage.options["mixed_precision"]:
        calibrated = plugin_constant("method", stage.options["method"], "CALIBRATED")
        return 1 if calibrated else num_workers
    return num_workers


def weight_bytes(num_parameters: int, bits: int) -> WeightBytes:
    num_bytes = num_parameters * bits // 8
    fitting = (gb for gb in GPU_MEMORY_GB if gb * 10**9 >= num_bytes)
    return WeightBytes(bits=bits, num_bytes=num_bytes, smallest_gpu_gb=next(fitting, None))
