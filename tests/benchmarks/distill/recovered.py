"""How much of what pruning lost each mix of losses brings back: real runs of the command.

All runs of a seed begin with the same pruned student and differ in nothing but losses and text.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.distill.scale import Scale
from tests.benchmarks.subjects import ROOT, WINDOW, Subject
from tests.benchmarks.tables import Table, table
from tests.benchmarks.workbench import rotate_text
from tests.integration.pipeline import Workplace

PERCENT = 50
TIMEOUT_S = 7200
SEEDS = (0, 1, 2)
TOKENS_PER_SEED_TEXT = 256
"""That the teacher goes on with each text for."""

CROSS_ENTROPY = {"name": "cross_entropy"}
FORWARD_KL = {"name": "forward_kl", "options": {"temperature": 2.0}}
PLAIN_KL = {"name": "forward_kl", "options": {"temperature": 1.0}}
MIX = [FORWARD_KL | {"weight": 0.8}, CROSS_ENTROPY | {"weight": 0.2}]
HIDDEN = {"name": "hidden_cosine", "weight": 1.0, "options": {"layers": "all"}}


class Way(NamedTuple):
    """What a student learns by."""

    losses: list[dict[str, Any]]
    decoded: bool = False
    """From text that the teacher wrote, in place of people's."""
    stored: bool = False
    """From stored teacher logits."""


WAYS = {
    "cross-entropy alone": Way([CROSS_ENTROPY]),
    "forward KL alone, T = 2": Way([FORWARD_KL]),
    "0.8 forward KL, T = 2, + 0.2 cross-entropy": Way(MIX),
    "the mix + hidden states (cosine, all layers)": Way([*MIX, HIDDEN]),
    "sequence level alone": Way([CROSS_ENTROPY], decoded=True),
    "the mix, on the sequence level's text": Way(MIX, decoded=True),
    "forward KL alone, T = 1": Way([PLAIN_KL]),
    "forward KL alone, T = 1, stored": Way([PLAIN_KL], stored=True),
}
OVER_SEEDS = ("cross-entropy alone", "forward KL alone, T = 1")
"""The baseline, and what was best at seed 0."""


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("distill", "recovered", scale.name)
    return [tabulate(cells, subjects[-1], scale)]


def tabulate(cells: Cells, subject: Subject, scale: Scale) -> Table:
    rows = []
    for name, way in WAYS.items():
        seeds = SEEDS if name in OVER_SEEDS and scale.name == "full" else SEEDS[:1]
        measured = [
            cells.compute(
                subject.name, name, seed, measure=partial(measure_way, subject, way, seed, scale)
            )
            for seed in seeds
        ]
        closed = [
            (cell["pruned"] - cell["distilled"]) / (cell["pruned"] - cell["teacher"])
            for cell in measured
        ]
        rows.append(
            [
                name,
                str(len(measured)),
                *(spread([cell[key] for cell in measured]) for key in ("pruned", "distilled")),
                spread([100 * each for each in closed], ".0f"),
                f"{np.median([cell['seconds'] for cell in measured]):.0f}",
            ]
        )
    title = (
        f"{subject.name}, {PERCENT}% pruned and repaired, then {scale.recovered_tokens:,} tokens: "
        f"{measured[0]['shape']}; teacher {measured[0]['teacher']:.3f} nats/token"
    )
    header = ["learned by", "seeds", "pruned", "distilled", "of the gap closed, %", "training, s"]
    return table(title, header, rows)


def spread(values: list[float], form: str = ".3f") -> str:
    mean = format(float(np.mean(values)), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


def measure_way(subject: Subject, way: Way, seed: int, scale: Scale) -> Cell:
    """Run one recipe; stages that it shares with others are found in their common store."""
    folder = ROOT / f".nightpress/bench/distill-{scale.name}/recovered-runs"
    place = Workplace(folder, timeout_s=TIMEOUT_S)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(json.loads(json.dumps(recipe(subject, way, seed, scale, folder))))
    )
    record = place.run_json("run", path)
    nats = {row["title"]: row["metrics"]["nats_per_token"] for row in record["models"]}
    facts = {row["title"]: row["model"]["facts"] for row in record["models"]}
    seconds = {stage["title"]: stage["seconds"] for stage in record["stages"]}
    return {
        "teacher": nats["teacher"],
        "pruned": nats["1 prune"],
        "distilled": nats["2 distill"],
        "shape": facts["1 prune"]["shape"],
        "seconds": seconds["2 distill"],
    }


def recipe(subject: Subject, way: Way, seed: int, scale: Scale, folder: Path) -> dict[str, Any]:
    text = str(subject.training)
    source: dict[str, Any] = {"name": "local_text", "options": {"path": text}}
    if way.decoded:
        options = {
            "seeds": text,
            "max_seeds": scale.recovered_tokens // TOKENS_PER_SEED_TEXT,
            "max_tokens": TOKENS_PER_SEED_TEXT,
        }
        source = {"name": "continuations", "options": options}
    prune = {
        "method": "criterion",
        "sparsity": subject.sparsity(PERCENT),
        "allow_rounding": True,
    }
    distill = {
        "losses": way.losses,
        "num_tokens": scale.recovered_tokens,
        "teacher": "stored" if way.stored else "online",
    }
    return {
        "name": "recovered",
        "seed": seed,
        "teacher": {"model": str(subject.folder)},
        "calibration": {
            "text": str(rotate_text(subject, seed, folder)),
            "num_windows": scale.recovered_windows,
            "window": WINDOW,
        },
        "evaluation": {"text": str(subject.heldout), "window": WINDOW},
        "corpus": {
            "generator": {"name": "teacher"},
            "sources": [source],
            "block_tokens": WINDOW,
        },
        "steps": [{"prune": prune}, {"distill": distill}],
        "exports": [{"name": "full", "method": "none", "format": "safetensors"}],
        "cluster": {"workers": 2},
    }
