"""One process whose peak memory is measured: MODEL TASK SCALE; prints one JSON line."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.prune.bench import Bench, Work, set_up
from tasks.prune.criteria import taylor
from tasks.prune.sweep.sweep import Choice, cut_units, score_unit
from tasks.prune.unit_statistics import Calibrated, measure_inputs
from tests.benchmarks.prune.memory import BIG
from tests.benchmarks.prune.scale import FULL, SMOKE, Scale
from tests.benchmarks.prune.staging import build_subject_bench, stage_options
from tests.benchmarks.subjects import Subject, find_subjects

BIG_OPTIONS = {"num_submodels": 2, "submodels_per_unit": 2, "windows_per_submodel": 1}
BIG_WINDOW = 128


def main() -> None:
    name, task, scale_name = sys.argv[1:]
    scale = {s.name: s for s in (FULL, SMOKE)}[scale_name]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = build_big(scale, Path(folder)) if name == BIG else build_small(name, scale, folder)
        with torch.inference_mode():
            bench.model(input_ids=bench.ids_WS[:1, :8])  # so that libraries are loaded
        gc.collect()
        loaded = read_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        said = work(bench, task)
    cell = {
        "model_bytes": sum(p.nbytes for p in bench.model.parameters()),
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


def build_small(name: str, scale: Scale, folder: str) -> Bench:
    (subject,) = (s for s in find_subjects() if s.name == name)
    stage = stage_options(subject, 50, {}, 0, scale, Path(folder))
    return build_subject_bench(stage, Path(folder))


def build_big(scale: Scale, scratch: Path) -> Bench:
    """Return a bench around random weights; the options are the product's on few windows."""
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=scale.big_layers,
            num_attention_heads=14,
            num_key_value_heads=2,
            vocab_size=32000,
            tie_word_embeddings=True,
        )
    ).eval()
    ids = torch.randint(32000, (4, BIG_WINDOW), generator=torch.Generator().manual_seed(0))
    borrowed: Subject = find_subjects()[0]
    options: dict[str, Any] = stage_options(borrowed, 50, BIG_OPTIONS, 0, scale, scratch).options
    options = options | BIG_OPTIONS | {"num_windows": len(ids), "window": BIG_WINDOW}
    return set_up(Work(Path, "", "", options), model, ids)


def read_bytes(field: str) -> int:
    """Return VmRSS (memory now) or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
