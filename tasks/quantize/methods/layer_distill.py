"""Layer-by-layer distillation: a quantized block learns to put out what it did in full precision.

    minimise  mean over tokens of  |f(x; V) - f(x; W)|^2 / |f(x; W)|^2

x is what the quantized prefix puts out on the calibration text, W are the block's weights and V
their rounded form; the weights under the rounding are learned, their steps, and the block's vectors
(the norms' gains, and biases). They begin with what GPTQ makes of the block.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.func import functional_call

from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.plain import PlainTensor
from tasks.quantize.block import Block, Quantized
from tasks.quantize.calibration import Prefix
from tasks.quantize.learned_rounding import Learned, rounded_weight, start_learning, to_integer
from tasks.quantize.methods import gptq

CALIBRATED = True
ENCODINGS = ("integer", "plain")

STEP_RATE = 0.2
VECTOR_RATE = 0.1
"""Learning rates of the steps' logarithms and of the vectors, as fractions of the weights'."""
BETAS = (0.9, 0.95)

Parameters = dict[str, torch.Tensor]


def quantize(
    block: Block,
    *,
    bits: Literal[8, 4, 3, 2] = 4,
    group_size: Annotated[int, Field(gt=0)] | None = 128,
    steps: Annotated[int, Field(ge=0)] = 200,
    batch_windows: Annotated[int, Field(gt=0)] = 1,
    learning_rate: Annotated[float, Field(gt=0)] = 0.01,
) -> Quantized:
    """Learn a block's codes, steps and vectors from its own outputs on the calibration text.

    Args:
        bits: Bits per code.
        group_size: Columns that share a step; None for one step per row.
        steps: Steps of Adam; 0 leaves what GPTQ made.
        batch_windows: Calibration windows per step of Adam.
        learning_rate: Of the weights, in units of their steps; a cosine takes it to 0.

    Reference: Yao et al. 2022, arXiv 2206.01861, layer-by-layer knowledge distillation.
    """
    prefix = block.calibrated
    weights = {}
    for name, start in gptq.quantize(block, bits=bits, group_size=group_size).items():
        assert isinstance(start, IntegerTensor)
        weights[name] = start_learning(block.weights[name], start)
    vectors = {name: value.clone().requires_grad_() for name, value in find_vectors(prefix).items()}

    def rounded() -> Parameters:
        return {name: rounded_weight(learned) for name, learned in weights.items()} | vectors

    with torch.no_grad():
        targets = [compute(prefix, block.weights, stream) for stream in prefix.streams]
    optimizer = start_adam(list(weights.values()), list(vectors.values()), learning_rate)
    order = endless_order(len(targets))
    for step in range(steps):
        set_rates(optimizer, 0.5 * (1 + math.cos(math.pi * step / steps)))
        parameters = rounded()
        errors = [
            token_error(compute(prefix, parameters, prefix.streams[index]), targets[index])
            for index in islice(order, batch_windows)
        ]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(errors).mean())
        optimizer.step()

    with torch.no_grad():
        facts = {"output_error": output_error(prefix, rounded(), targets)}
    done: Quantized = {name: to_integer(learned, facts) for name, learned in weights.items()}
    for name, value in vectors.items():
        done[name] = PlainTensor(value.detach().to(block.dtype).cpu(), facts)
    return done


def find_vectors(prefix: Prefix) -> Parameters:
    """Return the next block's parameters of one dimension, by their name in the model."""
    return {name: value.detach() for name, value in own_parameters(prefix) if value.ndim == 1}


def own_parameters(prefix: Prefix) -> list[tuple[str, torch.nn.Parameter]]:
    own = set(prefix.blocks[prefix.next_block].parameters())
    return [(name, value) for name, value in prefix.model.named_parameters() if value in own]


def compute(prefix: Prefix, parameters: Parameters, stream: torch.Tensor) -> torch.Tensor:
    """Take a window through the next block with other parameters, named as in the model."""
    module = prefix.blocks[prefix.next_block]
    (start,) = (name for name, own in prefix.model.named_modules() if own is module)
    named = {name.removeprefix(f"{start}."): value for name, value in parameters.items()}
    output = functional_call(module, named, stream, prefix.arguments[prefix.next_block])
    leaving: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return leaving


def token_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens of the relative squared error."""
    size = target.square().mean(-1).clamp(min=torch.finfo(target.dtype).tiny)
    return ((output - target).square().mean(-1) / size).mean()


def output_error(prefix: Prefix, parameters: Parameters, targets: Sequence[torch.Tensor]) -> float:
    """Return |f(x; V) - f(x; W)|^2 over |f(x; W) - x|^2, what the block adds to its stream."""
    lost = whole = 0.0
    for stream, target in zip(prefix.streams, targets, strict=True):
        lost += float((compute(prefix, parameters, stream) - target).square().sum())
        whole += float((target - stream).square().sum())
    return lost / whole if whole > 0 else 0.0


def start_adam(
    weights: Sequence[Learned], vectors: Sequence[torch.Tensor], learning_rate: float
) -> torch.optim.Adam:
    groups = [
        {"params": [own.latent for own in weights], "peak": learning_rate},
        {"params": [own.growth for own in weights], "peak": learning_rate * STEP_RATE},
        {"params": list(vectors), "peak": learning_rate * VECTOR_RATE},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], betas=BETAS)


def set_rates(optimizer: torch.optim.Adam, fraction: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * fraction


def endless_order(num_windows: int) -> Iterator[int]:
    """Yield windows, each epoch in an order of its own, always the same."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(num_windows, generator=generator).tolist()
