"""Cut units out of the weights: rows of the readers, columns of the writers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tasks.prune.units import Kept, Sublayer


def slice_weights(model: Any, sublayers: list[Sublayer], kept: Kept) -> dict[str, torch.Tensor]:
    """Return the state dict of the model without the units that are not kept.

    Tied parameters stay one tensor; what no unit owns is shared with the model, not copied.
    """
    state = dict(model.state_dict())
    for sublayer, mask in zip(sublayers, kept, strict=True):
        units = torch.from_numpy(np.flatnonzero(mask))
        for path, rows in sublayer.readers:
            for name in (f"{path}.weight", f"{path}.bias"):
                if name in state:
                    state[name] = _select(state[name], units, rows, dim=0)
        name = f"{sublayer.writer}.weight"
        state[name] = _select(state[name], units, sublayer.unit_width, dim=1)
    return state


def _select(tensor: torch.Tensor, units: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Keep the given units of `width` entries each along one dimension."""
    entries = (units[:, None] * width + torch.arange(width)).flatten()
    return tensor.index_select(dim, entries.to(tensor.device)).contiguous()


def build_sliced(config: Any, state: dict[str, torch.Tensor], trust_remote_code: bool) -> Any:
    """Make the smaller model of a config (`shape.smaller_config`) around sliced weights."""
    from transformers import AutoModelForCausalLM

    dtype = next(iter(state.values())).dtype
    with torch.device(next(iter(state.values())).device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    model.load_state_dict(state, strict=True)
    return model.eval()
