"""A model of fewer layers: some of a model's own, numbered anew, in a smaller config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.models.checkpoint import load_model
from tasks.models.initializer_context import InitializerContext, Student
from tasks.prune.shapes.stock_config import config_of_cut
from tasks.prune.units.layers import find_layer_group
from tasks.prune.units.slicing import build_sliced, slice_weights

Choose = Callable[[int, int], NDArray[np.int64]]
"""(layers to keep, layers there are) -> numbers of the layers that stay, ascending."""


def load_layers(context: InitializerContext, num_layers: int | None, choose: Choose) -> Student:
    """Load the incoming model and keep some of its layers; says which ones.

    Args:
        num_layers: How many; half of them, rounded up, where it is None.

    Raises:
        ValueError: there are fewer, or stock code does not build the smaller model.
    """
    trusted = context.trust_remote_code
    model = load_model(context.folder, trust_remote_code=trusted, spread=False)
    whole = int(model.config.num_hidden_layers)
    number = (whole + 1) // 2 if num_layers is None else num_layers
    if number > whole:
        raise ValueError(
            f"initializer: expected num_layers of at most {whole}, which the incoming model has, "
            f"got {number}"
        )
    layers = choose(number, whole)
    facts: dict[str, str | int | float] = {
        "layers_kept": " ".join(map(str, layers)),
        "layers_incoming": whole,
    }
    return Student(keep_layers(model, layers, trusted), facts)


def spread_evenly(number: int, whole: int) -> NDArray[np.int64]:
    """Return `number` of the numbers below `whole`, the first and the last among them."""
    return np.linspace(0, whole - 1, number).round().astype(np.int64)


def keep_layers(model: Any, layers: NDArray[np.int64], trust_remote_code: bool) -> Any:
    """Return a model of these layers, of the same class, with copies of their weights.

    Raises:
        ValueError: stock code does not build that model, or gives a layer a setting by its number.
    """
    group = find_layer_group(model)
    kept = [np.isin(np.arange(group.num_units), layers)]
    config = config_of_cut(model, [group], kept, trust_remote_code)
    return build_sliced(config, slice_weights(model, [group], kept), trust_remote_code)
