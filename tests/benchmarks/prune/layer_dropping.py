"""Layer dropping by block influence: identity in the place of whole layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from tasks.prune.criteria.block_influence import score_layers
from tasks.prune.units.units import Kept, Sublayer


class Dropped(NamedTuple):
    kept: Kept
    layers: list[int]
    sparsity: float
    """Fraction removed of the attention and FFN matrices; all layers are of one size."""


def drop_layers(
    model: Any, sublayers: list[Sublayer], ids_WS: torch.Tensor, most: float
) -> Dropped:
    """Drop the layers of least influence, as many as remove no more than `most`.

    Reference: Men et al. 2024, arXiv 2403.03853.
    """
    influence = score_layers(model, ids_WS)
    number = int(most * len(influence) + 1e-9)
    layers = sorted(influence.argsort(stable=True)[:number].tolist())
    return Dropped(list(without(sublayers, layers)), layers, number / len(influence))


def without(sublayers: list[Sublayer], layers: list[int]) -> Iterator[np.ndarray[Any, Any]]:
    for sublayer in sublayers:
        yield np.full(sublayer.num_units, sublayer.layer not in layers)
