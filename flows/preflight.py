"""What would make a night fail, found in seconds instead of hours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from flows.planning import make_plan
from infra.findings import Finding
from infra.ray_cluster import check_address
from infra.settings import read_settings
from infra.storage import Store, localize, open_store
from infra.store_check import check_store
from tasks.errors import CompressionError
from tasks.inputs import Inputs, find_inputs
from tasks.recipe import Recipe

GIB = 2**30
OPTIMIZER_BYTES_PER_PARAMETER = 16
"""fp32 weights, gradients and AdamW's two moments, before ZeRO divides the moments."""


def preflight(recipe: Recipe) -> None:
    """Stop a run that could not end well.

    Raises:
        ValueError: the first findings that are errors, each with its remedy.
    """
    errors = [finding for finding in examine(recipe, quick=True) if finding.level == "error"]
    if errors:
        raise ValueError(
            "\n".join(
                f"{finding.name}: {finding.message}"
                + (f"\n  -> {finding.remedy}" if finding.remedy else "")
                for finding in errors
            )
        )


def examine(recipe: Recipe, quick: bool = False) -> list[Finding]:
    """Return what was checked, good and bad.

    Args:
        quick: Leave out what needs torch where every stage is stored already.
    """
    findings: list[Finding] = [check_python()]
    settings = read_settings()
    uri = settings.store_uri(recipe.publish.store)
    findings += check_store(uri)
    if any(finding.level == "error" for finding in findings):
        return findings
    store = open_store(uri, settings.home / "cache")
    try:
        inputs = find_inputs(recipe, store)
    except (ValueError, CompressionError) as error:
        return [*findings, Finding("error", "inputs", str(error))]
    findings.append(Finding("ok", "inputs", "teacher and texts are there"))
    plan = make_plan(recipe, inputs, store)
    if quick and all(stage.outcome == "cached" for stage in plan.stages):
        return findings
    findings += [
        attempt("cluster", lambda: check_cluster(recipe)),
        attempt("memory", lambda: check_memory(recipe, inputs)),
        attempt("training", lambda: check_training(recipe)),
        attempt("model", lambda: check_model(recipe, inputs, store)),
        attempt("utility", lambda: check_utility(recipe)),
        attempt("shape", lambda: check_shape(recipe, inputs, store)),
    ]
    return findings


def attempt(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (ValueError, CompressionError) as error:
        return Finding("error", name, str(error))


def check_python() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] == (3, 11):
        return Finding("ok", "python", found)
    return Finding("warning", "python", f"{found}; tested with 3.11")


def check_cluster(recipe: Recipe) -> Finding:
    address = os.environ.get("RAY_ADDRESS", recipe.cluster.ray)
    check_address(address)
    wanted = recipe.cluster.workers * recipe.cluster.gpus_per_worker
    if address == "local" and wanted and not any(Path("/dev").glob("nvidia[0-9]*")):
        raise ValueError(
            f"cluster.gpus_per_worker is {recipe.cluster.gpus_per_worker:g} but this machine has "
            "no NVIDIA GPU; set it to 0, or name a Ray cluster that has them"
        )
    cores, threads = os.cpu_count() or 1, recipe.cluster.workers * recipe.cluster.threads_per_worker
    if address == "local" and threads > cores:
        return Finding(
            "warning",
            "cluster",
            f"{threads} worker threads on {cores} cores",
            "lower cluster.workers or cluster.threads_per_worker",
        )
    return Finding("ok", "cluster", f"{recipe.cluster.workers} workers, Ray {address}")


def check_memory(recipe: Recipe, inputs: Inputs) -> Finding:
    """Estimate the largest stage: each worker holds a teacher, and a student in training."""
    parameters = inputs.teacher.num_parameters
    per_worker = parameters * (4 + OPTIMIZER_BYTES_PER_PARAMETER)
    needed = per_worker * recipe.cluster.workers / GIB
    if os.environ.get("RAY_ADDRESS", recipe.cluster.ray) != "local":
        return Finding("ok", "memory", f"about {per_worker / GIB:.1f} GiB per worker in training")
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / GIB
    if recipe.cluster.gpus_per_worker == 0 and needed > available:
        raise ValueError(
            f"training needs about {needed:.1f} GiB in {recipe.cluster.workers} workers, "
            f"{available:.1f} GiB are free; use fewer workers, a smaller teacher, or a cluster"
        )
    return Finding("ok", "memory", f"about {needed:.1f} GiB of {available:.1f} GiB free")


def check_training(recipe: Recipe) -> Finding:
    """Hold the batch against the workers, before hours are spent on what comes before training."""
    from tasks.distill.deepspeed_config import split_batch

    steps = [step.distill for step in recipe.steps] + [export.train for export in recipe.exports]
    for options in steps:
        if options:
            split_batch(options.batch_blocks, options.micro_batch_blocks, recipe.cluster.workers)
    return Finding("ok", "training", "the global batch divides over the workers")


def check_model(recipe: Recipe, inputs: Inputs, store: Store) -> Finding:
    """Load tokenizer and config; cut the calibration windows; hold group sizes against widths."""
    from tasks.corpus.text import calibration_windows
    from tasks.models.checkpoint import load_config, load_tokenizer

    folder = localize(store, inputs.teacher.uri)
    config = load_config(folder)
    if "auto_map" in config and not recipe.teacher.trust_remote_code:
        raise ValueError(
            f"{recipe.teacher.model} comes with code of its own, which is not run; "
            "say teacher.trust_remote_code: true after reading it"
        )
    width = config.get("hidden_size")
    for export in recipe.exports:
        if width and width % export.group_size:
            raise ValueError(
                f"exports: {export.name}: group_size must divide hidden_size {width}, "
                f"got {export.group_size}"
            )
    tokenizer = load_tokenizer(folder)
    text = localize(store, inputs.calibration.uri)
    calibration_windows(text, tokenizer, recipe.calibration.num_windows, recipe.calibration.window)
    return Finding("ok", "model", f"{inputs.teacher.architecture}, {len(tokenizer):,} tokens")


def check_utility(recipe: Recipe) -> Finding:
    """Import what scores sub-models."""
    from tasks.prune.utility import load_utility

    names = sorted({step.prune.utility for step in recipe.steps if step.prune})
    for name in names:
        load_utility(name)
    return Finding("ok", "utility", ", ".join(names) or "no prune step")


def check_shape(recipe: Recipe, inputs: Inputs, store: Store) -> Finding:
    """Find the first prune step's shape, which names what cannot be cut and what does not fit."""
    folder = localize(store, inputs.teacher.uri)
    for step in recipe.steps:
        if step.prune:
            from tasks.prune.shapes.shape import check_prunable
            from tasks.prune.sweep.sweep import check_windows

            options = step.prune.model_dump()
            check_windows(options | {"num_windows": recipe.calibration.num_windows})
            shape = check_prunable(folder, options, recipe.alignment)
            return Finding("ok", "shape", str(shape))
    return Finding("ok", "shape", "no prune step")
