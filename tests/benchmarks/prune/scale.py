"""How much is measured: all of it, or just enough to see that the benchmark runs."""

from __future__ import annotations

from typing import Any, NamedTuple


class Scale(NamedTuple):
    name: str
    num_windows: int
    """Calibration windows."""
    heldout_windows: int | None
    """None: all that the text fills."""
    seeds: tuple[int, ...]
    prune: dict[str, Any]
    """Options of the prune step that differ from the product's defaults."""
    bonsai: dict[str, Any]
    ablation: dict[str, Any]
    budgets: tuple[int, ...]
    """Sub-models, for quality over time."""
    plain_masks: int
    heldout_masks: int
    utility_windows: int
    """Windows per mask of the plain way."""
    most_submodels: int
    """Where the search for the plain way's fit gives up."""
    scaling_units: int
    recovery_tokens: int
    """Of the distillation after the cut."""
    big_layers: int
    """Layers of the random model of a real shape."""


FULL = Scale(
    name="full",
    num_windows=280,
    heldout_windows=None,
    seeds=(0, 1, 2),
    prune={},
    bonsai={"masks_per_round": 60, "windows_per_mask": 16, "removed_per_round": 0.1},
    ablation={"num_windows": 4},
    budgets=(8, 16, 32, 64, 128),
    plain_masks=200,
    heldout_masks=100,
    utility_windows=8,
    most_submodels=800,
    scaling_units=16,
    recovery_tokens=500_000,
    big_layers=24,
)

SMOKE = Scale(
    name="smoke",
    num_windows=12,
    heldout_windows=4,
    seeds=(0,),
    prune={"num_submodels": 4, "windows_per_submodel": 2, "submodels_per_unit": 2},
    bonsai={"masks_per_round": 10, "windows_per_mask": 1, "removed_per_round": 0.5},
    ablation={"num_windows": 1},
    budgets=(2, 4),
    plain_masks=20,
    heldout_masks=10,
    utility_windows=2,
    most_submodels=24,
    scaling_units=6,
    recovery_tokens=20_000,
    big_layers=1,
)
