"""The blocks of a transformer: what runs one after the other, each alike."""

from typing import Any

from torch import nn


def list_blocks(model: Any) -> list[nn.Module]:
    """Return the modules of the first list that is as long as the config's number of layers.

    Raises:
        ValueError: the model has none.
    """
    number = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ValueError(
        f"{type(model).__name__}: expected a list of {number} blocks, got none; load it without "
        "cluster.offload, on one device"
    )
