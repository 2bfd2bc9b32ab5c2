"""One process whose peak memory is measured: MODEL TASK SCALE; prints one JSON line."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tasks.prune.bench import Bench
from tasks.prune.criteria import taylor
from tasks.prune.repair.repair import repair_submodels
from tasks.prune.sweep.sweep import Choice, cut_units, score_unit
from tasks.prune.unit_statistics import Calibrated, measure_inputs
from tests.benchmarks.prune.memory_models import MODELS, build_random
from tests.benchmarks.prune.scale import FULL, SMOKE, Scale
from tests.benchmarks.prune.staging import build_subject_bench, stage_options
from tests.benchmarks.subjects import find_subjects


def main() -> None:
    name, task, scale_name = sys.argv[1:]
    scale = {s.name: s for s in (FULL, SMOKE)}[scale_name]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch, streamed = Path(folder), task == "streamed sweep"
        if name in MODELS:
            bench = build_random(name, scale, scratch, streamed)
        else:
            bench = build_small(name, scale, scratch)
        with torch.inference_mode():
            bench.model(input_ids=bench.ids_WS[:1, :8])  # so that libraries are loaded
        gc.collect()
        loaded = read_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        said = work(bench, task)
    cell = {
        "model_bytes": sum(4 * p.numel() for p in bench.model.parameters()),
        "loaded_bytes": loaded,
        "peak_bytes": read_bytes("VmHWM"),
        "work": said,
    }
    print(json.dumps(cell))


def work(bench: Bench, task: str) -> str:
    """Do the task; say on how much text."""
    model, sublayers, ids = bench.model, bench.sublayers, bench.ids_WS
    if task == "taylor":
        one = ids[:1]
        taylor.score(Calibrated(model, sublayers, one, num_kept=[], input_norms=[]))
        return f"{one.numel()} tokens"
    if task == "repair":
        half = [np.arange(s.num_units) < s.num_units // 2 for s in sublayers]
        refine = bench.work.options["refine"]
        repair_submodels(model, bench.groups, bench.anatomy, [half], ids, refine=refine)
        return f"half of the block, on {ids.numel()} tokens"
    norms, _ = measure_inputs(model, sublayers, ids[:1])
    importance = [
        norm.view(s.num_units, -1).sum(1).double().numpy()
        for s, norm in zip(sublayers, norms, strict=True)
    ]
    num_kept = [max(s.num_units // 2, 1) for s in sublayers]
    choice = Choice(importance, num_kept, [False] * len(num_kept))
    score_unit(bench, cut_units(choice, bench.work.options)[0])
    options = bench.work.options
    tokens = options["windows_per_submodel"] * ids.shape[1]
    return f"{options['submodels_per_unit']} sub-models, scored on {tokens} tokens"


def build_small(name: str, scale: Scale, scratch: Path) -> Bench:
    (subject,) = (s for s in find_subjects() if s.name == name)
    return build_subject_bench(stage_options(subject, 50, {}, 0, scale, scratch), scratch)


def read_bytes(field: str) -> int:
    """Return VmRSS (memory now) or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
