"""What would make a night fail, found in seconds instead of hours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from flows.notifying import check_hooks
from flows.planning import Plan, make_plan
from infra.findings import Finding
from infra.ray_cluster import check_address
from infra.settings import read_settings
from infra.storage import Store, localize, open_store
from infra.store_check import check_store
from tasks.errors import CompressionError
from tasks.inputs import Inputs, find_inputs
from tasks.recipe import Recipe

GIB = 2**30


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
    findings += check_hooks(recipe, settings)
    if settings.signing_key:
        key = settings.signing_key
        findings.append(attempt("signing", lambda: check_signing(key)))
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
        attempt("memory", lambda: check_memory(recipe, plan)),
        attempt("training", lambda: check_training(recipe)),
        attempt("model", lambda: check_model(recipe, inputs, store)),
        attempt("utility", lambda: check_utility(recipe)),
        attempt("shape", lambda: check_shape(recipe, inputs, store)),
        attempt("exports", lambda: check_exports(recipe, inputs, store)),
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


def check_signing(path: Path) -> Finding:
    from tasks.publish.signing import load_signing_key

    public = load_signing_key(path).public_key().public_bytes_raw().hex()
    return Finding("ok", "signing", f"with the ed25519 key {public[:16]}...")


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


def check_memory(recipe: Recipe, plan: Plan) -> Finding:
    """Hold the stage that needs most memory in all its workers against what is free."""
    known = [
        (stage.peak_bytes * stage.workers, stage.peak_bytes, stage)
        for stage in plan.stages
        if stage.outcome != "cached" and stage.peak_bytes is not None
    ]
    if not known:
        return Finding("ok", "memory", "nothing to compute that arithmetic can foretell")
    needed, per_worker, stage = max(known, key=lambda entry: entry[0])
    where = f"in {stage.workers} worker{'s' * (stage.workers > 1)}"
    if recipe.cluster.gpus_per_worker or not is_local(recipe):
        _, per_worker, stage = max(known, key=lambda entry: entry[1])
        said = f"about {per_worker / GIB:.1f} GiB a worker, for {stage.title}"
        return Finding("ok", "memory", said)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if needed > available:
        raise ValueError(
            f"{stage.title} needs about {needed / GIB:.1f} GiB {where}, {available / GIB:.1f} GiB "
            "are free; use fewer workers, fewer calibration windows, cluster.offload: layers for "
            "pruning, a smaller teacher, or a cluster"
        )
    return Finding(
        "ok",
        "memory",
        f"about {needed / GIB:.1f} GiB {where} for {stage.title}, {available / GIB:.1f} GiB free",
    )


def is_local(recipe: Recipe) -> bool:
    return os.environ.get("RAY_ADDRESS", recipe.cluster.ray) == "local"


def check_training(recipe: Recipe) -> Finding:
    """Hold the batch against the workers, before hours are spent on what comes before training."""
    from tasks.distill.deepspeed_config import split_batch

    steps = [step.distill for step in recipe.steps] + [export.train for export in recipe.exports]
    for options in steps:
        if options:
            split_batch(options.batch_blocks, options.micro_batch_blocks, recipe.cluster.workers)
    return Finding("ok", "training", "the global batch divides over the workers")


def check_model(recipe: Recipe, inputs: Inputs, store: Store) -> Finding:
    """Load tokenizer and config; cut the calibration windows."""
    from tasks.corpus.text import calibration_windows
    from tasks.models.checkpoint import load_tokenizer
    from tasks.models.folder import load_config, name_quantization

    folder = localize(store, inputs.teacher.uri)
    if stored_as := name_quantization(folder):
        raise ValueError(
            f"teacher.model: {recipe.teacher.model} is quantized already ({stored_as}); give the "
            "model that it was made from, in 16 or 32 bits"
        )
    config = load_config(folder)
    if "auto_map" in config and not recipe.teacher.trust_remote_code:
        raise ValueError(
            f"{recipe.teacher.model} comes with code of its own, which is not run; "
            "say teacher.trust_remote_code: true after reading it"
        )
    tokenizer = load_tokenizer(folder)
    text = localize(store, inputs.calibration.uri)
    calibration_windows(text, tokenizer, recipe.calibration.num_windows, recipe.calibration.window)
    return Finding("ok", "model", f"{inputs.teacher.architecture}, {len(tokenizer):,} tokens")


def check_exports(recipe: Recipe, inputs: Inputs, store: Store) -> Finding:
    """Hold each export against the model's shape and what its format can express."""
    from tasks.quantize.export_check import check_export

    folder = localize(store, inputs.teacher.uri)
    for export in recipe.exports:
        try:
            check_export(folder, recipe, export)
        except (ValueError, CompressionError) as error:
            raise ValueError(f"{export.name}: {error}") from error
    return Finding("ok", "exports", ", ".join(export.name for export in recipe.exports))


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
