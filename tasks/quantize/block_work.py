"""What a worker must know to quantize any block of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tasks.quantize.checkpoint_tensors import read_tensors

if TYPE_CHECKING:
    from infra.storage import Store


class Part(NamedTuple):
    """Weights of a block that are quantized with the same options."""

    names: tuple[str, ...]
    options: dict[str, Any]
    """The method's."""


@dataclass(frozen=True)
class BlockWork:
    localize: Callable[[str], Path]
    model_uri: str
    method: str
    parts: list[list[Part]]
    """Per decoder block; together they are all weights that the block quantizes."""
    dtype: torch.dtype
    """Type in which steps are stored."""
    store: Store
    units: str
    """Folder of the store where the finished blocks lie."""


def read_block(
    work: BlockWork, index: int, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Return a block's weights as they are in the checkpoint, float32 [out, in] by name."""
    names = [name for part in work.parts[index] for name in part.names]
    tensors = dict(read_tensors(work.localize(work.model_uri), names))
    return {name: tensors[name].to(device, torch.float32) for name in names}
