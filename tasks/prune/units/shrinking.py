"""A module as it would be with fewer units, for masks that a product with 0 and 1 cannot say."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def shrink(module: nn.Module, kept: NDArray[np.bool_], **settings: Any) -> Any:
    """Return a copy of a module without the entries that are not kept, along dimension 0.

    Args:
        settings: The attributes in which a module notes its size; set where it has them.
    """
    small = copy.deepcopy(module)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim and len(tensor) == len(kept):
            entries = tensor.detach()[torch.from_numpy(kept).to(tensor.device)]
            if name in small._parameters:
                small._parameters[name] = nn.Parameter(entries, requires_grad=False)
            else:
                small._buffers[name] = entries
    for name, value in settings.items():
        if hasattr(small, name):
            setattr(small, name, value)
    return small
