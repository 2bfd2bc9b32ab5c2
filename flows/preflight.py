"""What would make a night fail, found in seconds instead of hours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flows.machine_checks import check_cluster, check_disk, check_memory
from flows.notifying import check_hooks, told_if_it_fails
from flows.planning import make_plan
from infra.clock_check import check_clock
from infra.findings import Finding
from infra.settings import read_settings
from infra.storage import Store, localize, open_store
from infra.store_check import check_store
from infra.version_check import check_versions
from tasks.errors import CompressionError
from tasks.inputs import Inputs, find_inputs
from tasks.recipe import Recipe
from tasks.stages import device_kind


def preflight(recipe: Recipe, corpus_alone: bool = False) -> None:
    """Stop a run that could not end well, and tell the webhooks that want to hear of it.

    Args:
        corpus_alone: It ends with the corpus.

    Raises:
        ValueError: the first findings that are errors, each with its remedy.
    """
    with told_if_it_fails(recipe):
        found = examine(recipe, quick=True, corpus_alone=corpus_alone)
        errors = [finding for finding in found if finding.level == "error"]
        if errors:
            raise ValueError("\n".join(map(describe_finding, errors)))


def describe_finding(finding: Finding) -> str:
    remedy = f"\n  -> {finding.remedy}" if finding.remedy else ""
    return f"{finding.name}: {finding.message}{remedy}"


def examine(recipe: Recipe, quick: bool = False, corpus_alone: bool = False) -> list[Finding]:
    """Return what was checked, good and bad.

    Args:
        quick: Leave out what needs torch where every stage is stored already.
        corpus_alone: Leave out what comes after the corpus.
    """
    findings = check_versions()
    settings = read_settings()
    findings += check_hooks(recipe, settings)
    if settings.signing_key:
        key = settings.signing_key
        findings += attempt("signing", lambda: check_signing(key))
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
    findings += attempt("clocks", lambda: check_clock(store))
    plan = make_plan(recipe, inputs, store, corpus_alone)
    if quick and all(stage.outcome == "cached" for stage in plan.stages):
        return findings
    findings += attempt("cluster", lambda: check_cluster(recipe))
    findings += attempt("memory", lambda: check_memory(recipe, plan))
    findings += attempt("disk", lambda: check_disk(recipe, inputs.teacher, settings, store))
    findings += attempt("head", lambda: check_head(recipe, inputs, store))
    findings += attempt("model", lambda: check_model(recipe, inputs, store))
    if corpus_alone:
        return findings
    findings += attempt("training", lambda: check_training(recipe))
    findings += attempt("utility", lambda: check_utility(recipe))
    findings += attempt("shape", lambda: check_shape(recipe, inputs, store))
    findings += attempt("exports", lambda: check_exports(recipe, inputs, store))
    return findings


def attempt(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    try:
        found = check()
    except (ValueError, CompressionError, OSError) as error:
        return [Finding("error", name, str(error))]
    return found if isinstance(found, list) else [found]


def check_signing(path: Path) -> Finding:
    from tasks.publish.signing import load_signing_key

    public = load_signing_key(path).public_key().public_bytes_raw().hex()
    return Finding("ok", "signing", f"with the ed25519 key {public[:16]}...")


def check_training(recipe: Recipe) -> Finding:
    """Hold the batch against the workers, before hours are spent on what comes before training."""
    from tasks.distill.deepspeed_config import check_precision, split_batch

    steps = [step.distill for step in recipe.steps] + [export.train for export in recipe.exports]
    for options in steps:
        if options:
            split_batch(options.batch_blocks, options.micro_batch_blocks, recipe.cluster.workers)
            check_precision(options.dtype, device_kind(recipe))
    return Finding("ok", "training", "the global batch divides over the workers")


def check_head(recipe: Recipe, inputs: Inputs, store: Store) -> Finding:
    """Hold the recipe against what the teacher's head predicts."""
    from tasks import head_check
    from tasks.models.folder import load_config

    config = load_config(localize(store, inputs.teacher.uri))
    return Finding("ok", "head", head_check.check_head(recipe, config))


def check_model(recipe: Recipe, inputs: Inputs, store: Store) -> Finding:
    """Load tokenizer and config; hold other students' tokenizers and heads against it; cut the
    calibration windows, which only a causal language model needs."""
    from tasks.corpus.examples import check_tokenizer
    from tasks.corpus.text import calibration_windows
    from tasks.models.checkpoint import load_tokenizer
    from tasks.models.folder import load_config, name_quantization, read_config
    from tasks.models.model_kind import head_kind

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
        from tasks.distill.heads import check_heads

        for student in inputs.students.values():
            own = localize(store, student.uri)
            shared_vocab_size(folder, own)
            check_heads(read_config(own), read_config(folder))
    if head_kind(inputs.teacher.architecture) != "causal_lm":
        check_tokenizer(tokenizer, recipe.corpus.block_tokens)
        return Finding("ok", "model", f"{inputs.teacher.architecture}, {len(tokenizer):,} tokens")
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
    folder, alignment = localize(store, inputs.teacher.uri), recipe.alignment
    for step in recipe.steps:
        if step.prune:
            from tasks.prune.shapes.shape import check_prunable
            from tasks.prune.sweep.sweep import check_windows

            options = step.prune.model_dump()
            check_windows(options | {"num_windows": recipe.calibration.num_windows})
            shape = check_prunable(folder, options, alignment)
            return Finding("ok", "shape", f"{shape}; widths are multiples of {alignment}")
    return Finding("ok", "shape", "no prune step")
