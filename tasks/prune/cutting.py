"""Cut a model for good: repair, slice, save; the work of one unit, done on a worker."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tasks.digests import list_files
from tasks.models.checkpoint import save_model
from tasks.prune.bench import Bench, Work, build_bench, open_model
from tasks.prune.loss import measure_loss
from tasks.prune.repair.repair import as_tensors, repair_submodels
from tasks.prune.shapes.padding import widen, zero_biases, zero_units
from tasks.prune.shapes.per_layer import build_per_layer
from tasks.prune.shapes.stock_config import config_of_cut
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune.units.units import Kept, Sublayer
from tasks.prune.utility import compare, load_utility

if TYPE_CHECKING:
    from infra.storage import Store

Tensors = dict[str, torch.Tensor]
"""By name in the model's state dict."""


class Candidate(NamedTuple):
    """One unit of work: which units to keep, and the store's folder for the model."""

    name: str
    kept: Kept
    prefix: str


class Cutter(NamedTuple):
    """A worker's state."""

    bench: Bench
    store: Store


def build_cutter(work: Work, store: Store) -> Cutter:
    return Cutter(build_bench(work), store)


def cut_candidate(cutter: Cutter, candidate: Candidate) -> bytes:
    """Write the smaller model to the store.

    Returns:
        JSON: `nats_per_token` and `utility` (null where it is no finite number) on all
        calibration windows, and `files`.
    """
    bench, kept = cutter.bench, candidate.kept
    work, options = bench.work, bench.work.options
    changed = repair_cut(bench, kept)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if options["shape"] == "per_layer":
            smaller = cut_per_layer(bench, kept, changed, out)
        elif options["shape"] == "padded":
            smaller = cut_padded(bench, kept, changed)
        else:
            smaller = cut_stock(bench, kept, changed)
        save_model(smaller, work.localize(work.model_uri), out)
        files = list_files(out)
        for path in files:
            cutter.store.put_file(out / path, f"{candidate.prefix}/{path}")
        if smaller.device != bench.model.device:  # put together on the CPU, for lack of room
            smaller = open_model(out, options)
        nats = measure_loss(smaller, bench.ids_WS)
        return json.dumps(judge(bench, smaller, nats) | {"files": files}).encode()


def repair_cut(bench: Bench, kept: Kept) -> Tensors:
    """Return the tensors that the repair changes, as wide as the incoming model's."""
    options = bench.work.options
    if not options["repair"]:
        return {}
    masks = [mask for g, mask in zip(bench.groups, kept, strict=True) if isinstance(g, Sublayer)]
    present = zip(bench.anatomy.activations, masks, strict=True)
    anatomy = bench.anatomy._replace(activations=[a if m.any() else None for a, m in present])
    ((repaired,), _) = repair_submodels(
        bench.model, bench.groups, anatomy, [kept], bench.ids_WS, refine=options["refine"]
    )
    return as_tensors(bench.model, repaired)


def cut_stock(bench: Bench, kept: Kept, changed: Tensors) -> Any:
    """Make the smaller model of stock code."""
    remote = bench.work.options["trust_remote_code"]
    config = config_of_cut(bench.model, bench.groups, kept, remote)
    return build_sliced(config, slice_weights(bench.model, bench.groups, kept, changed), remote)


def cut_padded(bench: Bench, kept: Kept, changed: Tensors) -> Any:
    """Make the stock model in which zeros fill up what is narrower than the widest."""
    wide = widen(bench.groups, kept)
    added = [more & ~mask for more, mask in zip(wide, kept, strict=True)]
    changed = zero_units(bench.model, bench.groups, added, changed)
    return cut_stock(bench, wide, zero_biases(bench.model, bench.groups, kept, changed))


def cut_per_layer(bench: Bench, kept: Kept, changed: Tensors, folder: Path) -> Any:
    """Make the model by a modelling file of its own, which is written to the folder."""
    model, groups = bench.model, bench.groups
    remote = bench.work.options["trust_remote_code"]
    config = config_of_cut(model, groups, widen(groups, kept), remote)
    state = slice_weights(model, groups, kept, changed)
    return build_per_layer(model, groups, kept, config, state, folder)


def judge(bench: Bench, smaller: Any, nats: float) -> dict[str, float | None]:
    """Say what a smaller model with this loss is worth on all calibration windows."""
    name = bench.work.options["utility"]
    utility: float | None = -nats
    if name != "loss":
        utility = compare(smaller, bench.model, bench.ids_WS, load_utility(name))
    return {"nats_per_token": nats, "utility": utility}
