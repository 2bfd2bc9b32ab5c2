"""Hidden dimensions: one choice for the whole network, from the embeddings to the head.

Which dimension of which weight has the hidden size is asked of the family's own code: a model of
twice the hidden size is built without storage, and whatever grew with it is what a cut would take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.prune.shapes.stock_class import empty_model, name_class
from tasks.prune.shapes.stock_config import smaller_config
from tasks.prune.units.shrinking import shrink
from tasks.prune.units.units import Group, Slice


def find_hidden(model: Any, trust_remote_code: bool = False) -> Group:
    """Return the hidden dimensions as units.

    Raises:
        ValueError: other widths follow the hidden size, so that it cannot be cut alone.
    """
    size = model.config.hidden_size
    config = name_class(model)
    larger = empty_model(smaller_config(config, [], {"hidden": 2 * size}), trust_remote_code)
    grown = {name: tensor.shape for name, tensor in larger.state_dict().items()}
    slices = []
    for name, tensor in model.state_dict().items():
        dims = [d for d in range(tensor.ndim) if tensor.shape[d] != grown[name][d]]
        plain = all((tensor.shape[d], grown[name][d]) == (size, 2 * size) for d in dims)
        if len(dims) > 1 or not plain:
            raise ValueError(f"another width follows from the hidden size, in {name}")
        slices += [Slice(name, d) for d in dims]
    return Group("hidden", size, tuple(slices), tuple(_find_norms(model, slices, size)))


def mask_hidden(model: Any, group: Group, kept: NDArray[np.bool_]) -> list[Callable[[], object]]:
    """Let every norm see the kept dimensions only, and zero what is written to the others."""
    kept_H = torch.from_numpy(kept)
    numbers = kept_H.nonzero().flatten()

    def normalize(norm: nn.Module) -> Callable[..., torch.Tensor]:
        small = shrink(norm, kept, normalized_shape=(len(numbers),))

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            masked, index = torch.zeros_like(output), numbers.to(output.device)
            masked[..., index] = small.forward(inputs[0][..., index])
            return masked

        return hook

    def silence(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output * kept_H.to(output)

    norms = [model.get_submodule(path) for path in group.paths]
    hooks = [(norm, normalize(norm)) for norm in norms]
    hooks += [(module, silence) for module in _find_writers(model, group.slices)]
    return [module.register_forward_hook(hook).remove for module, hook in hooks]


def _find_writers(model: Any, slices: tuple[Slice, ...]) -> list[nn.Module]:
    """Return the modules that put out the hidden dimensions: embeddings, linear layers, experts."""
    tensors = model.state_dict()
    writers = []
    for part in slices:
        module = model.get_submodule(part.name.rpartition(".")[0])
        if isinstance(module, nn.Embedding) or part.dim < tensors[part.name].ndim - 1:
            writers.append(module)
    return writers


def _find_norms(model: Any, slices: list[Slice], size: int) -> list[str]:
    """Return the modules whose every weight is one vector over the hidden dimensions."""
    sliced = {part.name for part in slices}
    norms = []
    for path, module in model.named_modules():
        weights = dict(module.named_parameters())
        if weights:
            is_norm = all(w.ndim == 1 and f"{path}.{n}" in sliced for n, w in weights.items())
        else:
            is_norm = getattr(module, "normalized_shape", None) == (size,)
        if is_norm:
            norms.append(path)
    return norms
