"""What a run would do: which stages are stored, which would be computed, and what they cost."""

from __future__ import annotations

from typing import Any, Literal

from flows.compress_model import compress
from flows.make_corpus import make_corpus
from flows.worker_memory import estimate_peak
from infra.storage import Store
from tasks.inputs import Inputs
from tasks.plugins import plugin_constant
from tasks.recipe import Recipe
from tasks.records import ModelRef, Record
from tasks.report.wording import describe_amount
from tasks.stage import Stage, read_completion

UNKNOWN = "unknown"
"""Digest of a record that a stage not yet computed would return."""

BITS = (32, 16, 8, 4, 3, 2, 1)
GPU_MEMORY_GB = (8, 16, 24, 48, 80, 141)
CPU_FLOPS_PER_WORKER = 2e10
GPU_FLOPS_PER_WORKER = 1e14
"""Assumed for the rough cost: fp32 on one core; bf16 on a data-centre GPU below its peak."""


class PlannedStage(Record):
    title: str
    outcome: Literal["cached", "to compute", "follows"]
    """`follows`: it depends on a stage to compute, so its key is not known yet."""
    seconds: float | None
    """Measured when it was computed; estimated else; None where there is nothing to go by."""
    peak_bytes: int | None = None
    """Memory of one worker at its peak; measured or estimated in the same way."""
    workers: int
    """That work at a time."""
    note: str = ""
    """Of a prune step, the shape that it cut to, or what the run will solve it for."""


class WeightBytes(Record):
    bits: int
    num_bytes: int
    smallest_gpu_gb: int | None
    """Smallest common GPU memory that holds the weights; None where none does."""


class Plan(Record):
    stages: list[PlannedStage]
    weights: list[WeightBytes]
    seconds_to_compute: float


def make_plan(recipe: Recipe, inputs: Inputs, store: Store, corpus_alone: bool = False) -> Plan:
    """Walk the recipe, or its corpus alone, against the store; nothing is computed, and nothing
    heavy is imported."""
    planned: list[PlannedStage] = []

    def look_up(title: str, stage: Stage, record_type: type[Any]) -> Any:
        workers = count_workers(recipe, stage)
        known = all(record.digest != UNKNOWN for record in stage.inputs.values())
        done = read_completion(store, stage) if known else None
        if done:
            shape = str(done.record.get("facts", {}).get("shape", ""))
            note = shape if stage.name == "prune" else ""
            planned.append(
                PlannedStage(
                    title=title,
                    outcome="cached",
                    seconds=done.seconds,
                    peak_bytes=done.peak_bytes,
                    workers=workers,
                    note=note,
                )
            )
            return record_type(**done.record)
        seconds = estimate_seconds(recipe, stage, inputs.teacher)
        outcome: Literal["to compute", "follows"] = "to compute" if known else "follows"
        note = foretell_shape(stage.options) if stage.name == "prune" else ""
        planned.append(
            PlannedStage(
                title=title,
                outcome=outcome,
                seconds=seconds,
                peak_bytes=estimate_peak(recipe, stage, inputs.teacher, store),
                workers=workers,
                note=note,
            )
        )
        return placeholder(record_type, inputs.teacher)

    if corpus_alone:
        make_corpus(recipe, inputs, inputs.teacher, look_up)
    else:
        compress(recipe, inputs, look_up, models=[])
    return Plan(
        stages=planned,
        weights=[weight_bytes(inputs.teacher.num_parameters, bits) for bits in BITS],
        seconds_to_compute=sum(s.seconds or 0 for s in planned if s.outcome != "cached"),
    )


def foretell_shape(options: dict[str, Any]) -> str:
    """Say what is known of a prune step's shape from its options alone."""
    amount = describe_amount(options)
    if options["budget"]:
        return f"{amount}; the shape is solved in the run"
    return f"{amount}, {options['shape']} shape"


def placeholder(record_type: type[Any], teacher: ModelRef) -> Any:
    """Stand in for a record that is not known yet; a student is taken to be half its teacher."""
    if record_type is ModelRef:
        half = teacher.num_parameters // 2
        return teacher.model_copy(update={"digest": UNKNOWN, "num_parameters": half})
    return record_type.model_construct(digest=UNKNOWN)


def count_workers(recipe: Recipe, stage: Stage) -> int:
    """Return how many workers a stage has: a method that looks at text takes one block after the
    other."""
    if stage.name == "quantize" and not stage.options["mixed_precision"]:
        calibrated = plugin_constant("method", stage.options["method"], "CALIBRATED")
        return 1 if calibrated else recipe.cluster.workers
    return recipe.cluster.workers


def estimate_seconds(recipe: Recipe, stage: Stage, teacher: ModelRef) -> float | None:
    """Estimate a stage's time from its floating-point operations: 2 per parameter and token
    forwards, 6 with the backward pass (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
    options: dict[str, Any] = stage.options
    model = stage.inputs.get("model") or stage.inputs.get("student") or teacher
    calibration_tokens = options.get("num_windows", 0) * options.get("window", 0)
    if stage.name in ("source", "label", "corpus"):
        if "teacher" not in stage.inputs:
            return None
        sampled: int = options.get("options", {}).get("num_tokens", 0)
        operations = 2 * teacher.num_parameters * sampled
    elif stage.name == "prune":
        sweep = options["num_submodels"] * options["windows_per_submodel"] * options["window"]
        sweep *= 4 if options["repair"] else 1  # repaired on twice as many windows
        if options["budget"]:  # four kinds at four levels, on all windows with the repair's
            sweep += 16 * calibration_tokens
        if options["shape"] != "uniform":  # about 30 layers of two sublayers at two widths
            sweep += 120 * calibration_tokens
        operations = 2 * model.num_parameters * (sweep + 4 * calibration_tokens)
    elif stage.name == "teacher_logits":
        corpus = stage.inputs["corpus"]
        if corpus.digest == UNKNOWN:
            return None
        operations = 2 * teacher.num_parameters * corpus.num_blocks * corpus.block_tokens
    elif stage.name == "distill":
        is_run = options["teacher"] == "online"
        per_token = 6 * model.num_parameters + 2 * teacher.num_parameters * is_run
        operations = per_token * options["num_tokens"]
    elif stage.name == "quantize":
        operations = 4 * model.num_parameters * calibration_tokens
    else:
        operations = 2 * model.num_parameters * stage.inputs["text"].num_bytes // 4
    on_gpu = recipe.cluster.gpus_per_worker > 0
    speed = GPU_FLOPS_PER_WORKER if on_gpu else CPU_FLOPS_PER_WORKER
    return round(operations / (speed * recipe.cluster.workers), 1)


def weight_bytes(num_parameters: int, bits: int) -> WeightBytes:
    num_bytes = num_parameters * bits // 8
    fitting = (gb for gb in GPU_MEMORY_GB if gb * 10**9 >= num_bytes)
    return WeightBytes(bits=bits, num_bytes=num_bytes, smallest_gpu_gb=next(fitting, None))
