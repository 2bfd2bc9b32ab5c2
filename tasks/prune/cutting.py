"""Cut a model for good: repair, slice, save; the work of one unit, done on a worker."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from tasks.digests import list_files
from tasks.models.checkpoint import save_model
from tasks.prune.loss import measure_loss
from tasks.prune.repair import repair_submodels
from tasks.prune.shape import choose_shape
from tasks.prune.slicing import build_sliced, slice_weights
from tasks.prune.sweep import Bench, Work, build_bench
from tasks.prune.units import Kept

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
        JSON: `nats_per_token` on all calibration windows, and `files`.
    """
    model, sublayers, ids = cutter.bench.model, cutter.bench.sublayers, cutter.bench.ids_WS
    options = cutter.bench.work.options
    remote = options["trust_remote_code"]
    config = choose_shape(model, options, options["alignment"], remote).config
    state = slice_weights(model, sublayers, candidate.kept)
    if options["repair"]:
        (weights,), _ = repair_submodels(model, sublayers, [candidate.kept], ids)
        state |= {f"{s.writer}.weight": w for s, w in zip(sublayers, weights, strict=True)}
    smaller = build_sliced(config, state, remote)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        save_model(smaller, cutter.bench.work.localize(cutter.bench.work.model_uri), out)
        files = list_files(out)
        for path in files:
            cutter.store.put_file(out / path, f"{candidate.prefix}/{path}")
    measured = {"nats_per_token": measure_loss(smaller, ids), "files": files}
    return json.dumps(measured).encode()


def count_parameters_per_unit(bench: Bench) -> list[int]:
    """Return, per sublayer, the weights that one of its units owns."""

    def size(path: str) -> int:
        weight: torch.Tensor = bench.model.get_submodule(path).weight
        return weight.numel()

    return [
        sum(size(path) for path in (*(p for p, _ in s.readers), s.writer)) // s.num_units
        for s in bench.sublayers
    ]
