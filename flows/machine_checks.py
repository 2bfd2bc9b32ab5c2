"""Whether the machines at hand can do what a recipe asks: cluster, GPUs, memory, disk."""

from __future__ import annotations

import os
import shutil
from math import floor
from typing import TYPE_CHECKING

from infra.clock_check import judge_clock
from infra.findings import Finding
from infra.free_memory import available_bytes
from infra.gpu_check import check_gpus
from infra.gpus import list_gpus
from infra.ray_session import check_address, effective_address
from infra.ray_survey import Node, survey_cluster
from infra.storage import FileStore, Store
from infra.store_check import first_existing
from infra.version_check import installed_versions

if TYPE_CHECKING:
    from flows.planning import Plan
    from infra.settings import Settings
    from tasks.distill_options import DistillOptions
    from tasks.recipe import Recipe
    from tasks.records import ModelRef

GIB = 2**30
MODEL_BYTES = 8
"""Per parameter of the teacher that a step or an export writes: float32, in the store and in the
scratch space that it comes from."""
TRAINING_BYTES = 48
"""Per parameter: three checkpoints with weights, gradients' sums and AdamW's moments."""
LOGIT_BYTES = 100
"""Per token of a teacher whose distributions are stored; measured, for 64 entries at most."""


def check_cluster(recipe: Recipe) -> list[Finding]:
    """Hold the recipe's workers against this machine, or against each node of its cluster.

    Raises:
        ValueError: the cluster is not there, or does not let us in.
    """
    address = effective_address(recipe.cluster.ray)
    check_address(address)
    if address != "local":
        try:
            nodes = survey_cluster(address)
        except TimeoutError as error:
            remedy = "see `ray status`: whether its head is up, and its nodes can start a process"
            return [Finding("warning", "cluster", str(error), remedy)]
        return check_nodes(recipe, nodes)
    wanted = recipe.cluster.workers * recipe.cluster.gpus_per_worker
    gpus = check_gpus(wanted) if wanted else []
    cores, threads = os.cpu_count() or 1, recipe.cluster.workers * recipe.cluster.threads_per_worker
    if threads > cores:
        message = f"{threads} worker threads on {cores} cores"
        remedy = "lower cluster.workers or cluster.threads_per_worker"
        return [Finding("warning", "cluster", message, remedy), *gpus]
    return [Finding("ok", "cluster", f"{recipe.cluster.workers} workers, Ray local"), *gpus]


def check_nodes(recipe: Recipe, nodes: list[Node]) -> list[Finding]:
    """Hold a cluster's nodes against what the recipe asks, and against this machine's libraries.

    Too few places for workers are a warning: a cluster may grow when it is asked.
    """
    asked = recipe.cluster
    places = sum(
        floor(
            min(
                node.num_cpus / asked.threads_per_worker,
                node.num_gpus / asked.gpus_per_worker if asked.gpus_per_worker else asked.workers,
            )
        )
        for node in nodes
    )
    message = f"{len(nodes)} nodes with places for {places} of {asked.workers} workers"
    remedy = "lower cluster.workers, or add nodes, unless the cluster grows by itself"
    enough = places >= asked.workers
    findings = [Finding("ok", "cluster", message)]
    if not enough:
        findings = [Finding("warning", "cluster", message, remedy)]
    for node in nodes:
        findings += check_node(node)
    far = max(nodes, key=lambda node: abs(node.skew_s), default=None)
    if far:
        findings.append(judge_clock(far.skew_s, f"the clock of node {far.host}"))
    return findings


def check_node(node: Node) -> list[Finding]:
    """Hold a node's libraries against ours: another one may give other bytes under the same key."""
    if not node.versions:
        message = f"node {node.host} did not answer in time"
        return [Finding("warning", "cluster", message, "see `ray status` and the node's log")]
    ours = installed_versions()
    remedy = "install constraints.txt there and here, or use the image of infra/Dockerfile"
    others = {
        name: found
        for name, found in node.versions.items()
        if name != "prefect" and found != ours[name]
    }
    said = ", ".join(f"{name} {found}, here {ours[name]}" for name, found in others.items())
    absent = "none" in others.values()
    return (
        [Finding("error" if absent else "warning", "versions", f"{node.host}: {said}", remedy)]
        if others
        else []
    )


def check_memory(recipe: Recipe, plan: Plan) -> Finding:
    """Hold the stage that needs most memory in all its workers against what is free."""
    known = [
        (stage.peak_bytes * stage.workers, stage.peak_bytes, stage)
        for stage in plan.stages
        if stage.outcome != "cached" and stage.peak_bytes is not None
    ]
    if not known:
        return Finding("ok", "memory", "nothing to compute that arithmetic can foretell")
    needed, _, stage = max(known, key=lambda entry: entry[0])
    is_local = effective_address(recipe.cluster.ray) == "local"
    if recipe.cluster.gpus_per_worker or not is_local:
        _, per_worker, stage = max(known, key=lambda entry: entry[1])
        said = f"about {per_worker / GIB:.1f} GiB a worker, for {stage.title}"
        sizes = [gpu.total_bytes for gpu in list_gpus() if gpu.total_bytes] if is_local else []
        smallest = min(sizes, default=per_worker)
        if per_worker > smallest:
            raise ValueError(
                f"{said}; the smallest GPU has {smallest / GIB:.0f} GiB; use fewer calibration "
                "windows or smaller batches, cluster.offload: layers for pruning, or a larger GPU"
            )
        return Finding("ok", "memory", said)
    where = f"in {stage.workers} worker{'s' * (stage.workers > 1)}"
    available = available_bytes()
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


def check_disk(recipe: Recipe, teacher: ModelRef, settings: Settings, store: Store) -> Finding:
    """Hold what a night writes, if nothing of it is stored yet, against the free disk.

    It goes through the state folder, also on its way to a bucket.
    """
    places = [settings.home] + ([store.root] if isinstance(store, FileStore) else [])
    free, place = min((shutil.disk_usage(first_existing(p)).free, p) for p in places)
    needed = estimate_disk(recipe, teacher.num_parameters)
    said = f"about {needed / GIB:.1f} GiB to write, {free / GIB:.1f} GiB free at {place}"
    if needed > free:
        remedy = "free some disk, run `nightpress gc --delete`, or set NIGHTPRESS_HOME elsewhere"
        return Finding("warning", "disk", said, remedy)
    return Finding("ok", "disk", said)


def estimate_disk(recipe: Recipe, num_parameters: int) -> int:
    """Return the bytes of all models, checkpoints and stored distributions of a night; a student
    is taken to be as large as the teacher."""

    def training(options: DistillOptions) -> int:
        logits = LOGIT_BYTES * options.num_tokens if options.teacher == "stored" else 0
        return TRAINING_BYTES * num_parameters + logits

    total = 0
    for step in recipe.steps:
        num_models = 1 + len(recipe.comparisons) if step.distill else 1
        each = MODEL_BYTES * num_parameters + (training(step.distill) if step.distill else 0)
        total += num_models * each
    for export in recipe.exports:
        total += MODEL_BYTES * num_parameters + (training(export.train) if export.train else 0)
    return total
