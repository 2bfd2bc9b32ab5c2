"""DistilBERT's recipe on an encoder: a fine-tuned teacher, and students of half of its layers.

The learning rate is chosen on training rows that no model is trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.distill.distilbert_runs import Bench, Way, make_models, run_pilot, run_way
from tests.benchmarks.distill.scale import Scale
from tests.benchmarks.distill.sst2 import divide_rows, why_not
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

SEEDS = {"full": (0, 1, 2), "smoke": (0,)}
RATES = {"full": (5e-5, 1.5e-4, 5e-4), "smoke": (1.5e-4,)}
NUM_RESAMPLES = 10_000

HALVED = Way("every other layer", "triple loss")
UNTAUGHT = Way("every other layer", "labels alone")
RANDOM = Way("random", "triple loss")
FIRST = Way("first layers", "triple loss")
LOGITS = Way("every other layer", "triple loss, logit MSE for KL")
WAYS = {
    "full": (HALVED, UNTAUGHT, RANDOM, FIRST, LOGITS),
    "smoke": (HALVED, UNTAUGHT, RANDOM),
}
PILOTED = {"full": (HALVED, UNTAUGHT, RANDOM), "smoke": (HALVED,)}
"""Whose learning rate is chosen; the others take that of HALVED."""
COMPARED = {
    "with a teacher less without": (HALVED, UNTAUGHT),
    "every other layer less first layers": (HALVED, FIRST),
    "every other layer less random": (HALVED, RANDOM),
    "KL less logit MSE": (HALVED, LOGITS),
}

Figures = NDArray[np.float64]


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    if reason := why_not():
        print(f"distilbert is left out: {reason}")
        return []
    cells = Cells("distill", "distilbert", scale.name)
    bench = Bench(cells.folder, divide_rows(scale), scale)
    make_models(bench)
    pilots = {
        way: {
            rate: cells.compute("pilot", *way, rate, measure=partial(run_pilot, bench, way, rate))
            for rate in RATES[scale.name]
        }
        for way in PILOTED[scale.name]
    }
    best = {way: max(tried, key=partial(held_out_accuracy, tried)) for way, tried in pilots.items()}
    rates = {way: best.get(way, best[HALVED]) for way in WAYS[scale.name]}
    measured = {
        way: [
            cells.compute(*way, seed, measure=partial(run_way, bench, way, rates[way], seed))
            for seed in SEEDS[scale.name]
        ]
        for way in WAYS[scale.name]
    }
    return [
        tabulate_accuracy(measured, rates, scale),
        tabulate_differences(measured),
        tabulate_size(measured[HALVED][0]),
        tabulate_pilots(pilots, bench),
    ]


def held_out_accuracy(tried: dict[float, Cell], rate: float) -> float:
    return float(verdicts([tried[rate]], "student").mean())


def verdicts(cells: list[Cell], model: str) -> Figures:
    """Return 1 where a row's label was given and 0 elsewhere, [num_seeds, num_rows]."""
    return np.array([[float(mark) for mark in cell[model]] for cell in cells])


def interval(estimate: Callable[[Figures], Figures], shape: tuple[int, int]) -> tuple[float, float]:
    """Return the ends of the 95% interval of a figure over seeds and rows.

    Seeds and rows are drawn anew, each by itself, so that a row counts as often in every seed.

    Args:
        estimate: Of weights [num_resamples, num_seeds, num_rows] the figures [num_resamples].

    Reference: Owen 2007, arXiv 0712.1111, the pigeonhole bootstrap.
    """
    rng = np.random.default_rng(0)
    seeds, rows = (rng.multinomial(n, np.full(n, 1 / n), NUM_RESAMPLES) / n for n in shape)
    figures = estimate(seeds[:, :, None] * rows[:, None, :])
    lower, upper = np.quantile(figures, [0.025, 0.975])
    return float(lower), float(upper)


def average(values: Figures, weights: Figures) -> Figures:
    mean: Figures = np.einsum("nsr,sr->n", weights, values)
    return mean


def percent(part: Figures, whole: Figures, weights: Figures) -> Figures:
    return 100 * average(part, weights) / average(whole, weights)


def tabulate_accuracy(
    measured: dict[Way, list[Cell]], rates: dict[Way, float], scale: Scale
) -> Table:
    lines = []
    for way, cells in measured.items():
        teacher, student = verdicts(cells, "teacher"), verdicts(cells, "student")
        lower, upper = interval(partial(percent, student, teacher), student.shape)
        of_seeds = 100 * student.mean(axis=1)
        lines.append(
            [
                way.student,
                way.losses,
                f"{rates[way]:g}",
                str(len(cells)),
                f"{of_seeds.mean():.1f} ({of_seeds.min():.1f} to {of_seeds.max():.1f})",
                f"{100 * student.mean() / teacher.mean():.1f} ({lower:.1f} to {upper:.1f})",
            ]
        )
    layers = measured[HALVED][0]["layers_kept"].replace(" ", ", ")
    title = (
        f"SST-2, {teacher.shape[1]} dev rows; teacher fine-tuned on "
        f"{scale.distilbert_teacher_rows:,} rows: {100 * teacher.mean():.1f}%; students on "
        f"{scale.distilbert_rows:,} rows, each {scale.distilbert_passes} time(s); every other "
        f"layer: {layers}"
    )
    header = ["student", "learned by", "learning rate", "seeds", "accuracy, % (least to most)"]
    return table(title, [*header, "of the teacher's, % (95%)"], lines)


def tabulate_differences(measured: dict[Way, list[Cell]]) -> Table:
    lines = []
    for name, (one, other) in COMPARED.items():
        if other not in measured:
            continue
        gain = verdicts(measured[one], "student") - verdicts(measured[other], "student")
        lower, upper = interval(partial(average, gain), gain.shape)
        span = f"{100 * lower:+.1f} to {100 * upper:+.1f}"
        lines.append([name, str(len(gain)), f"{100 * gain.mean():+.1f}", span])
    header = ["compared", "seeds", "points of accuracy", "95% interval"]
    return table("Differences on the same rows and seeds", header, lines)


def tabulate_size(cell: Cell) -> Table:
    lines = []
    for name, number, num_bytes in zip(
        ("teacher", "students"), cell["parameters"], cell["bytes"], strict=True
    ):
        outside = number - cell["embeddings"]
        lines.append(
            [
                name,
                f"{number / 1e6:.2f} M",
                f"{100 * number / cell['parameters'][0]:.1f}",
                f"{outside / 1e6:.2f} M",
                f"{100 * outside / (cell['parameters'][0] - cell['embeddings']):.1f}",
                f"{num_bytes / 2**20:.0f}",
                f"{100 * num_bytes / cell['bytes'][0]:.0f}",
            ]
        )
    header = ["model", "parameters", "%", "outside of embeddings", "%", "MiB on disk", "%"]
    return table("Size, float32", header, lines)


def tabulate_pilots(pilots: dict[Way, dict[float, Cell]], bench: Bench) -> Table:
    lines = [
        [*way, *(f"{100 * held_out_accuracy(tried, rate):.1f}" for rate in tried)]
        for way, tried in pilots.items()
    ]
    title = (
        f"Learning rates: accuracy, %, on {len(bench.rows.held_out)} training rows held out, "
        f"after {bench.scale.distilbert_pilot_rows:,} others"
    )
    rates = [f"{rate:g}" for rate in RATES[bench.scale.name]]
    return table(title, ["student", "learned by", *rates], lines)
