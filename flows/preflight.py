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
from tasks.stages import device_kind

GIB = 2**30


def preflight(recipe: Recipe, corpus_alone: bool = False) -> None:
    """Stop a run that could not end well.

    Args:
        corpus_alone: It ends with the corpus.

    Raises:
        ValueError: the first findings that are errors, each with its remedy.
    """
    found = examine(recipe, quick=True, corpus_alone=corpus_alone)
    errors = [finding for finding in found if finding.level == "error"]
    if errors:
        raise ValueError(
            "\n".join(
                f"{finding.name}: {finding.message}"
                + (f"\n  -> {finding.remedy}" if finding.remedy else "")
                for finding in errors
            )
        )


def examine(recipe: Recipe, quick: bool = False, corpus_alone: bool = False) -> list[Finding]:
    """Return what was checked, good and bad.

    Args:
        quick: Leave out what needs torch where every stage is stored already.
        corpus_alone: Leave out what comes after the corpus.
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
    plan = make_plan(recipe, inputs, store, corpus_alone)
    if quick and all(stage.outcome == "cached" for stage in plan.stages):
        return findings
    findings += [
        attempt("cluster", lambda: check_cluster(recipe)),
        attempt("memory", lambda: check_memory(recipe, plan)),
        attempt("model", lambda: check_model(recipe, inputs, store)),
    ]
    if corpus_alone:
        return findings
    findings += [
        attempt("training", lambda: check_training(recipe)),
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
    from tasks.distill.deepspeed_config import check_precision, split_batch

    steps = [step.distill for step in recipe.steps] + [export.train for export in recipe.exports]
    for options in steps:
        if options:
            split_batch(options.batch_blocks, options.micro_batch_blocks, recipe.cluster.workers)
            check_precision(options.dtype, device_kind(recipe))
    return Finding("ok", "training", "the global batch divides over the workers")


def check_model(recipe: Recipe, inputs: Inputs, store: Store) -> Finding:
    """Load tokenizer and config; hold other students' tokenizers against it; cut the calibration
    windows."""
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
    if inputs.students:
        from tasks.distill.distillation import shared_vocab_size

        for student in inputs.students.values():
            shared_vocab_size(folder, localize(store, student.uri))
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
