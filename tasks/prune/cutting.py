"""Cut a model for good: repair, slice, save; the work of one unit, done on a worker."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.digests import list_files
from tasks.models.checkpoint import save_model
from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune.loss import measure_loss
from tasks.prune.repair.repair import as_tensors, repair_submodels
from tasks.prune.shapes.padding import widen, zero_units
from tasks.prune.shapes.per_layer import build_per_layer
from tasks.prune.shapes.stock_config import config_of_cut
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune.units.units import Kept
from tasks.prune.utility import compare, load_utility

if TYPE_CHECKING:
    from infra.storage import Store


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
    work, model, _, groups, anatomy, ids = cutter.bench
    options, kept = work.options, candidate.kept
    widened = kept if options["shape"] == "uniform" else widen(groups, kept)
    config = config_of_cut(model, groups, widened, options["trust_remote_code"])
    changed = {}
    if options["repair"]:
        ((repaired,), _) = repair_submodels(
            model, groups, anatomy, [kept], ids, refine=options["refine"]
        )
        changed = as_tensors(model, repaired)
    if options["shape"] == "padded":
        added = [wide & ~mask for wide, mask in zip(widened, kept, strict=True)]
        changed = zero_units(model, groups, added, changed)
        kept = widened
    state = slice_weights(model, groups, kept, changed)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if options["shape"] == "per_layer":
            smaller = build_per_layer(model, groups, kept, config, state, out)
        else:
            smaller = build_sliced(config, state, options["trust_remote_code"])
        save_model(smaller, work.localize(work.model_uri), out)
        files = list_files(out)
        for path in files:
            cutter.store.put_file(out / path, f"{candidate.prefix}/{path}")
    nats, name = measure_loss(smaller, ids), options["utility"]
    value = -nats if name == "loss" else compare(smaller, model, ids, load_utility(name))
    return json.dumps({"nats_per_token": nats, "utility": value, "files": files}).encode()
