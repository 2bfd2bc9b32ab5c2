"""How long a forward pass takes, measured where the units of work run."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch

from tasks.models.spreading import pick_device
from tasks.prune.budgets.room import config_of_shape
from tasks.prune.shapes.stock_class import make_model
from tasks.prune.units.units import Units

MIN_PASSES = 7
MIN_SECONDS = 0.3
"""Passes are timed until there are both so many and so much of them."""
WARM_UPS = 2


class Protocol(NamedTuple):
    """What is timed."""

    batch: int
    """Sequences in a forward pass."""
    tokens: int
    """Tokens in each."""

    def __str__(self) -> str:
        device = pick_device()
        if device == "cuda":
            where = torch.cuda.get_device_name()
        else:
            where = f"cpu, {torch.get_num_threads()} threads"
        return (
            f"median of at least {MIN_PASSES} forward passes, {self.batch} x {self.tokens} "
            f"tokens, float32, {where}"
        )


def time_shape(
    model: Any,
    groups: list[Units],
    num_kept: dict[str, int],
    protocol: Protocol,
    trust_remote_code: bool = False,
) -> float:
    """Return the milliseconds of an untrained model of a shape: weights do not change the time."""
    config = config_of_shape(model, groups, num_kept)
    with torch.device(model.device):
        smaller = make_model(config, trust_remote_code)
    smaller.eval().requires_grad_(False)
    return time_forward(smaller, protocol)


def time_forward(model: Any, protocol: Protocol) -> float:
    """Return the median time of a forward pass in milliseconds."""
    shape = (protocol.batch, protocol.tokens)
    ids = torch.arange(protocol.batch * protocol.tokens, device=model.device).view(shape)
    ids = ids % model.config.vocab_size
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            model(input_ids=ids)
        while len(times) < MIN_PASSES or sum(times) < MIN_SECONDS:
            synchronize(model.device)
            began = time.perf_counter()
            model(input_ids=ids)
            synchronize(model.device)
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
