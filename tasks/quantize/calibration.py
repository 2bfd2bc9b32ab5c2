"""The quantized prefix: what the blocks quantized so far make of the calibration text.

The model goes block by block through its own quantized beginning, so that each block is fitted to
the inputs that it will see. One window at a time: no padding, and no mask that has a batch size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.models.quantized_tensor import QuantizedTensor
from tasks.models.streaming import bring_in, let_go, open_streamed
from tasks.quantize.decoder_blocks import find_blocks


@dataclass
class Prefix:
    """A worker's state: the model, and the residual stream that enters its next block.

    Only the next block's weights are in memory; the others stay in the checkpoint's files.
    """

    model: Any
    blocks: nn.ModuleList
    arguments: list[dict[str, Any]]
    """Per block, what the model passes beside the residual stream."""
    streams: list[torch.Tensor]
    """Per window [1, window, hidden]."""
    next_block: int = 0


class _Stop(Exception):
    """Ends a forward pass where its rest is not needed."""


@torch.no_grad()
def enter_model(
    localize: Callable[[str], Path], model_uri: str, ids: torch.Tensor, trust_remote_code: bool
) -> Prefix:
    """Load the model and take the calibration windows up to its first block.

    Args:
        ids: Calibration tokens, [num_windows, window].
    """
    model = open_streamed(localize(model_uri), "float32", trust_remote_code)
    blocks = find_blocks(model)
    arguments: list[dict[str, Any]] = []
    streams: list[torch.Tensor] = []

    def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments.append(kwargs)

    def stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams.append(args[0])
        raise _Stop

    hooks = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    model(input_ids=ids[:1].to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    hook = blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    for window in ids[:, None].to(model.device):
        try:
            model(input_ids=window, use_cache=False)
        except _Stop:
            continue
    hook.remove()
    bring_in(blocks[0])
    return Prefix(model, blocks, arguments, streams)


@torch.no_grad()
def advance(prefix: Prefix, tensors: Mapping[str, QuantizedTensor]) -> None:
    """Put the quantized weights into the next block and take the windows through it."""
    put_weights(prefix, tensors)
    prefix.streams = [run_block(prefix, stream) for stream in prefix.streams]
    let_go(prefix.blocks[prefix.next_block])
    prefix.next_block += 1
    if prefix.next_block < len(prefix.blocks):
        bring_in(prefix.blocks[prefix.next_block])


@torch.no_grad()
def put_weights(prefix: Prefix, tensors: Mapping[str, QuantizedTensor]) -> None:
    """Make the model compute with what the tensors stand for."""
    for name, tensor in tensors.items():
        prefix.model.get_parameter(name).copy_(tensor.dequantize())


def run_block(prefix: Prefix, stream: torch.Tensor) -> torch.Tensor:
    """Take one window's residual stream [1, window, hidden] through the next block."""
    index = prefix.next_block
    output = prefix.blocks[index](stream, **prefix.arguments[index])
    entering_next: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return entering_next


@torch.no_grad()
def watch_inputs(
    prefix: Prefix, names: Sequence[str], visit: Callable[[str, torch.Tensor], None]
) -> dict[str, str]:
    """Take the windows through the next block, and show what enters its linears.

    Args:
        visit: Called with a weight's name and its input, float32 [tokens, in], window by window.
            Linears that get the same tensor, as q, k and v do, are shown once.

    Returns:
        For each weight the name under which its input was shown, in the order in which they ran.
    """
    shown_as: dict[str, str] = {}
    seen: list[tuple[str, torch.Tensor]] = []

    def show(name: str, x: torch.Tensor) -> None:
        if name not in shown_as:
            shown_as[name] = next((n for n, tensor in seen if tensor is x), name)
            seen.append((name, x))
        if shown_as[name] == name:
            visit(name, x.flatten(0, -2).float())

    hooks = [
        prefix.model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda module, args, name=name: show(name, args[0])
        )
        for name in names
    ]
    for stream in prefix.streams:
        run_block(prefix, stream)
        seen.clear()
    for hook in hooks:
        hook.remove()
    return shown_as


def shared_inputs(prefix: Prefix, names: Sequence[str]) -> list[list[str]]:
    """Return the next block's weights in the order in which they run, by the input they share.

    Those that no calibration token reaches come last, each by itself.
    """
    shown_as: dict[str, str] = {}
    for stream in prefix.streams:
        if len(shown_as) == len(names):
            break
        left = [name for name in names if name not in shown_as]
        shown_as |= watch_inputs(replace(prefix, streams=[stream]), left, lambda name, x: None)
    groups: dict[str, list[str]] = {}
    for name in [*shown_as, *(name for name in names if name not in shown_as)]:
        groups.setdefault(shown_as.get(name, name), []).append(name)
    return list(groups.values())


def collect_hessians(prefix: Prefix, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return per weight the sum of x x^T over the calibration tokens, float64 [in, in].

    Linears that get the same tensor share one sum; it is 0 where no token came by.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, x: torch.Tensor) -> None:
        product = x.T @ x
        if name not in sums:
            sums[name] = product.double()
        else:
            sums[name] += product

    shown_as = watch_inputs(prefix, names, add)
    for name in names:
        if name not in shown_as:
            weight = prefix.model.get_parameter(name)
            sums[name] = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    return {name: sums[shown_as.get(name, name)] for name in names}
