"""How fast a model is, and what it takes, measured by a worker that does nothing else."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from infra.peak_memory import read_peak, reset_peak

SPEED_BATCH = 8
SPEED_REPEATS = 7


def describe_place(model: Any) -> dict[str, Any]:
    """Say what computes, and in which type."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device.type),
        "threads": torch.get_num_threads(),
    }


def make_batch(model: Any, ids: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Return the text's first tokens, over again where it is too short, [rows, length]."""
    repeats = math.ceil(rows * length / len(ids))
    return ids.repeat(repeats)[: rows * length].view(rows, length).to(model.device)


def time_calls(call: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a call; the first is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def measure_prefill(model: Any, ids: torch.Tensor, window: int) -> dict[str, Any]:
    """Time batches of full windows, without a cache.

    Args:
        ids: [num_tokens] of the held-out text.

    Returns:
        tokens_per_s, and where.
    """
    batch = make_batch(model, ids, SPEED_BATCH, window)
    with torch.inference_mode():
        # Reading a number back waits for the device.
        seconds = time_calls(lambda: float(first_output(model(input_ids=batch))), SPEED_REPEATS)
    return {"tokens_per_s": round(batch.numel() / seconds, 1)} | describe_place(model)


def first_output(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = next(value for value in output.values() if torch.is_tensor(value))
    return tensor.flatten()[0]


def measure_latency(
    model: Any, ids: torch.Tensor, batch_size: int, prompt_tokens: int, new_tokens: int | None
) -> dict[str, Any]:
    """Time the prefill of a prompt and each step of its greedy continuation.

    Args:
        new_tokens: To write, at least 2, through the model's own cache; None where it writes none.

    Returns:
        A `LatencyRow` as a mapping.
    """
    reset_peak()
    batch = make_batch(model, ids, batch_size, prompt_tokens)
    decode_ms = None
    with torch.inference_mode():
        if new_tokens is None:
            prefill_s = time_calls(
                lambda: float(first_output(model(input_ids=batch))), SPEED_REPEATS
            )
        else:
            prefill_s = time_calls(lambda: read_prompt(model, batch)[0].cpu(), SPEED_REPEATS)
            token, cache = read_prompt(model, batch)

            def step() -> None:
                nonlocal token, cache
                output = model(input_ids=token, past_key_values=cache, use_cache=True)
                token, cache = output.logits[:, -1:].argmax(dim=-1), output.past_key_values
                token.cpu()

            decode_ms = round(1000 * time_calls(step, new_tokens - 1), 4)
    return {
        "batch_size": batch_size,
        "prefill_ms": round(1000 * prefill_s, 4),
        "decode_ms": decode_ms,
        "peak_bytes": read_peak(),
    }


def read_prompt(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Return the likeliest next token of each sequence, [batch, 1], and the cache."""
    output = model(input_ids=batch, use_cache=True)
    return output.logits[:, -1:].argmax(dim=-1), output.past_key_values
