"""Held-out loss of every method at the same kept shape, without training."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tasks.models.checkpoint import load_model
from tasks.plugins import plugin_names
from tasks.prune.units.masking import masked
from tasks.prune_options import PruneOptions
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.prune.layer_dropping import drop_layers
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.prune.staging import build_subject_bench, run_prune, stage_options
from tests.benchmarks.prune.unstructured import UNSTRUCTURED
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table
from tests.benchmarks.workbench import measure_folder, measure_heldout

PRIOR: str = PruneOptions.model_fields["criterion"].default.name
OFTEN = ("activation_norm", "bonsai")
"""Criteria measured with every seed on the larger models, too."""
REPAIRED = ("activation_norm", "random", "taylor")
"""Criteria that are also measured with our repair."""
NOTES = {"taylor": "needs gradients"}


class Method(NamedTuple):
    """One row."""

    name: str
    options: dict[str, Any]
    """Of the prune step; nothing where the row is the benchmark's own."""
    note: str = ""
    often: bool = True
    """With every seed, also on the larger models."""


def list_methods(scale: Scale) -> Iterator[Method]:
    yield Method("ours: sweep + repair", {})
    yield Method("ours: repair alone", {"method": "criterion"}, f"prior {PRIOR}")
    tuned = {"bonsai": scale.bonsai, "ablation": scale.ablation}
    for name in plugin_names("criterion"):
        criterion = {"name": name, "options": tuned.get(name, {})}
        alone = {"method": "criterion", "criterion": criterion, "repair": False}
        yield Method(name, alone, NOTES.get(name, ""), often=name in OFTEN)
        if name in REPAIRED:
            repaired = alone | {"repair": True}
            yield Method(f"{name} + our repair", repaired, NOTES.get(name, ""), often=False)
    yield Method("layer dropping (block influence)", {}, "stops at what it reaches", often=False)
    for name in UNSTRUCTURED:
        yield Method(f"unstructured {name}", {}, "no serving speedup", often=False)


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("prune", "quality", scale.name)
    return [
        tabulate(cells, subject, percent, scale)
        for subject in subjects
        for percent in subject.shapes
    ]


def tabulate(cells: Cells, subject: Subject, percent: int, scale: Scale) -> Table:
    measure = partial(measure_heldout, load_model(subject.folder), subject, scale.heldout_windows)
    dense = cells.compute(subject.name, "dense", measure=lambda: {"nats": measure()})["nats"]
    rows, shapes = [], set()
    for method in list_methods(scale):
        small = len(subject.shapes) > 1 and "our repair" not in method.name
        often = method.often or small
        found = [
            cells.compute(
                subject.name,
                percent,
                method.name,
                seed,
                measure=partial(measure_method, method, subject, percent, seed, scale),
            )
            for seed in (scale.seeds if often else scale.seeds[:1])
        ]
        increases = [cell["nats"] - dense for cell in found]
        shapes |= {cell["shape"] for cell in found if cell["shape"]}
        rows.append(
            [
                method.name,
                f"{dense + statistics.mean(increases):.3f}",
                f"+{statistics.mean(increases):.3f}",
                f"{max(increases) - min(increases):.3f}" if len(found) > 1 else "",
                f"{found[0]['sparsity']:.1%}",
                f"{statistics.mean(cell['seconds'] for cell in found):.0f}",
                str(len(found)),
                method.note,
            ]
        )
    (shape,) = shapes
    print(f"{subject.name}, {percent}%: kept shape {shape}")
    return table(
        f"{subject.name}, {percent}%: {shape}; dense {dense:.4f} nats/token",
        ["method", "nats/token", "increase", "spread", "removed", "seconds", "seeds", "note"],
        rows,
    )


def measure_method(method: Method, subject: Subject, percent: int, seed: int, scale: Scale) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if method.options or method.name.startswith("ours"):
            chosen = method.options
            if chosen.get("criterion", {}).get("name") in ("random", "bonsai"):
                options = chosen["criterion"]["options"] | {"seed": seed}
                chosen = chosen | {"criterion": chosen["criterion"] | {"options": options}}
            stage = stage_options(subject, percent, chosen, seed, scale, scratch)
            pruned = run_prune(stage, scratch)
            facts = pruned.record.facts
            return {
                "nats": measure_folder(pruned.folder, subject, scale.heldout_windows),
                "seconds": pruned.seconds,
                "shape": facts["shape"],
                "sparsity": facts["sparsity_got_all"],
                "facts": facts,
            }
        return measure_own(method.name, subject, percent, seed, scale, scratch)


def measure_own(
    name: str, subject: Subject, percent: int, seed: int, scale: Scale, scratch: Path
) -> Cell:
    """Measure a baseline that the product does not have."""
    stage = stage_options(subject, percent, {}, seed, scale, scratch)
    began = time.perf_counter()
    bench = build_subject_bench(stage, scratch)
    model, sublayers, ids = bench.model, bench.sublayers, bench.ids_WS
    removed = sparsity_of(subject, percent)
    if name.startswith("unstructured"):
        UNSTRUCTURED[name.split()[1]](model, ids, removed)
        seconds = time.perf_counter() - began
        nats = measure_heldout(model, subject, scale.heldout_windows)
        return {"nats": nats, "seconds": seconds, "shape": "", "sparsity": removed}
    dropped = drop_layers(model, sublayers, ids, removed)
    seconds = time.perf_counter() - began
    with masked(model, sublayers, dropped.kept):
        nats = measure_heldout(model, subject, scale.heldout_windows)
    return {
        "nats": nats,
        "seconds": seconds,
        "shape": "",
        "sparsity": dropped.sparsity,
        "layers": dropped.layers,
    }


def sparsity_of(subject: Subject, percent: int) -> float:
    """Return the fraction of the attention and FFN matrices that the common shape removes."""
    config, kept, units = subject.config, subject.shapes[percent], subject.num_units()
    hidden = config["hidden_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    per_group = 2 * hidden * head * (1 + config["num_attention_heads"] // units["kv_groups"])
    sizes = {"kv_groups": per_group, "ffn": 3 * hidden}
    total = sum(sizes[kind] * units[kind] for kind in sizes)
    return 1 - sum(sizes[kind] * kept[kind] for kind in sizes) / total
