"""A model larger than the memory that it runs in: each block's weights come when the block runs.

The weights of the blocks' linear layers and experts stay in the checkpoint's files, mapped into
memory as they are stored. The mapped pages belong to the operating system's page cache: workers of
one machine share them, and they may be dropped and read again. A block's forward pass begins with
a copy of its weights in the dtype and on the device that it computes in, and ends by letting it
go; where neither differs, the mapped pages are computed with as they are. Embeddings, norms,
biases, routers and the head are small, or read at any time, so they stay where they are used.

Outside its block's forward pass a streamed parameter has the shape that it always has, but the
stored dtype and place. Whoever reads it then asks `read_weight`, whoever writes it `resident`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.models.blocks import list_blocks
from tasks.models.checkpoint import read_model
from tasks.models.folder import read_header
from tasks.models.model_kind import auto_class
from tasks.models.spreading import pick_device


@dataclass
class Source:
    """Where a streamed parameter's values come from: its attribute `source`."""

    stored: torch.Tensor
    """On the CPU: mapped from a file, or written since."""
    device: str
    dtype: torch.dtype
    uses: int = 0
    """Forward passes and `resident` contexts that need the values now."""

    def fetch(self) -> torch.Tensor:
        """Return the values to compute with; the stored ones themselves where those will do."""
        return self.stored.to(self.device, self.dtype)


def open_streamed(folder: Path, dtype: str = "float32", trust_remote_code: bool = False) -> Any:
    """Open a model that computes bit for bit as `load_model`'s does.

    Memory, besides the mapped files: what is outside the blocks, and one block at a time.
    Gradients cannot be taken.

    Args:
        dtype: Name of the torch dtype to compute in.

    Raises:
        CheckpointError: transformers refuses it.
        ValueError: the model has no list of blocks.
    """
    target, device = getattr(torch, dtype), pick_device()
    model = read_model(folder, stored_dtype(folder) or target, trust_remote_code)
    if model.dtype != target:
        _compute_in(model, target, trust_remote_code)
    blocks = list_blocks(model)
    for block in blocks:
        for parameter in _large_parameters(block):
            parameter.source = Source(parameter.data, device, target)
    for parameter in model.parameters():
        if not is_streamed(parameter):
            parameter.data = parameter.data.to(device, target)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for block in blocks:
        block.register_forward_pre_hook(lambda block, _: _bring_in(block))
        block.register_forward_hook(lambda block, _, __: _let_go(block), always_call=True)
    return model.eval()


@contextmanager
def resident(module: nn.Module) -> Iterator[None]:
    """Hold a module's parameters in the dtype and on the device that it computes in.

    What is written into them is kept, in memory, for all later forward passes; nothing is written
    to the files. Of a model that is not streamed all parameters are resident anyway.
    """
    _bring_in(module)
    try:
        yield
    finally:
        for parameter in _streamed(module):
            source: Source = parameter.source
            in_place = parameter.data_ptr() == source.stored.data_ptr()
            if not in_place and not torch.equal(parameter.data, source.fetch()):
                source.stored = parameter.data.cpu()
        _let_go(module)


def bring_in(module: nn.Module) -> None:
    """Give a module parameters of its own, to be read and written like any others.

    They stay until `let_go`, which drops what was written; hold one block at a time so.
    """
    _bring_in(module)
    for parameter in _streamed(module):
        if parameter.data_ptr() == parameter.source.stored.data_ptr():
            parameter.data = parameter.data.clone()


def let_go(module: nn.Module) -> None:
    """Go back to the checkpoint's values, after `bring_in`."""
    _let_go(module)


def read_weight(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter's values as a forward pass has them, whether or not they are streamed."""
    if is_streamed(parameter) and not parameter.source.uses:  # type: ignore[attr-defined]
        values: torch.Tensor = parameter.source.fetch()  # type: ignore[attr-defined]
        return values
    return parameter.detach()


def is_streamed(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "source")


def stored_dtype(folder: Path) -> torch.dtype | None:
    """Return the dtype of all tensors of a checkpoint; None where they differ."""
    headers = [read_header(shard) for shard in sorted(folder.glob("*.safetensors"))]
    dtypes = {entry["dtype"] for header in headers for entry in header.values()}
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    names["BF16"] = torch.bfloat16
    return names.get(dtypes.pop()) if len(dtypes) == 1 else None


def _compute_in(model: Any, dtype: torch.dtype, trust_remote_code: bool) -> None:
    """Give a model that was read in another dtype what does not come from the checkpoint: buffers
    that are computed when it is built, such as the scale of gemma's embeddings."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    with init_empty_weights(include_buffers=False):
        built = auto_class(model.config).from_config(
            model.config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    for path, module in model.named_modules():
        own = module._non_persistent_buffers_set
        for name in own:
            module._buffers[name] = built.get_submodule(path)._buffers[name]
    model.config.dtype = dtype


def _large_parameters(block: nn.Module) -> Iterator[Any]:
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            is_matrix = isinstance(module, nn.Linear | Conv1D) and parameter.ndim == 2
            if is_matrix or parameter.ndim > 2:
                yield parameter


def _streamed(module: nn.Module) -> Iterator[Any]:
    return (parameter for parameter in module.parameters() if is_streamed(parameter))


@torch.inference_mode(False)
def _bring_in(module: nn.Module) -> None:
    for parameter in _streamed(module):
        source: Source = parameter.source
        if not source.uses:
            parameter.data = source.fetch()
        source.uses += 1


def _let_go(module: nn.Module) -> None:
    for parameter in _streamed(module):
        source: Source = parameter.source
        source.uses -= 1
        if not source.uses:
            parameter.data = source.stored
