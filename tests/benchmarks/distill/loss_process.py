"""One process whose loss, time and peak memory are measured: WAY MIX SCALE; prints a JSON line."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional

from kernels.chunked_kd import fused
from kernels.chunked_kd.naive import DenseTeacher, Head, Term
from tests.benchmarks.distill.scale import FULL, SMOKE

TEMPERATURE = 2.0
SHARE = 0.5
"""Of either term."""
MIXES = {
    "cross-entropy + forward KL": (Term("cross_entropy"), Term("forward_kl", TEMPERATURE)),
    "cross-entropy + JSD": (Term("cross_entropy"), Term("jsd", TEMPERATURE, beta=0.5)),
}


class Inputs(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    teacher_hidden: torch.Tensor
    teacher_weight: torch.Tensor
    labels: torch.Tensor


def main() -> None:
    way, mix, scale_name = sys.argv[1:]
    scale = {s.name: s for s in (FULL, SMOKE)}[scale_name]
    torch.set_num_threads(1)
    loss = WAYS[way]
    small = draw(16, 256, 32)
    loss(small, mix).backward()  # so that libraries are loaded
    inputs = draw(scale.loss_tokens, scale.loss_vocab, scale.loss_width)
    if way == "liger, compiled":
        loss(inputs, mix).backward()
        inputs.hidden.grad = inputs.weight.grad = None
    gc.collect()
    loaded = read_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began, began_cpu = time.perf_counter(), time.process_time()
    value = loss(inputs, mix)
    value.backward()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    above = read_bytes("VmHWM") - loaded
    assert inputs.hidden.grad is not None and inputs.weight.grad is not None
    cell = {
        "loss": float(value.detach()),
        "hidden_norm": float(inputs.hidden.grad.norm()),
        "weight_norm": float(inputs.weight.grad.norm()),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "above_bytes": above - inputs.hidden.grad.nbytes - inputs.weight.grad.nbytes,
    }
    print(json.dumps(cell))


def draw(num_tokens: int, vocab_size: int, width: int) -> Inputs:
    """Logits of standard deviation 2 from both heads, half of the variance common."""
    torch.manual_seed(0)
    hidden, other = torch.randn(num_tokens, width), torch.randn(num_tokens, width)
    weight = torch.randn(vocab_size, width).mul_(2 * width**-0.5)
    nudge = torch.randn(vocab_size, width).mul_(2 * width**-0.5)
    teacher_weight = nudge.add_(weight).mul_(0.5**0.5)
    teacher_hidden = other.mul_(0.1).add_(hidden)
    labels = torch.randint(vocab_size, (num_tokens,))
    hidden.requires_grad_()
    weight.requires_grad_()
    return Inputs(hidden, weight, teacher_hidden, teacher_weight, labels)


def lose_plainly(inputs: Inputs, mix: str) -> torch.Tensor:
    z = inputs.hidden @ inputs.weight.T
    with torch.no_grad():
        log_q = torch.log_softmax(inputs.teacher_hidden @ inputs.teacher_weight.T / TEMPERATURE, 1)
    hard = functional.cross_entropy(z, inputs.labels, reduction="sum")
    log_p = torch.log_softmax(z / TEMPERATURE, dim=1)
    if MIXES[mix][1].kind == "forward_kl":
        soft = functional.kl_div(log_p, log_q, reduction="sum", log_target=True)
    else:
        log_m = (0.5 * (log_p.exp() + log_q.exp())).log()
        soft = 0.5 * functional.kl_div(log_m, log_q, reduction="sum", log_target=True)
        soft += 0.5 * functional.kl_div(log_m, log_p, reduction="sum", log_target=True)
    return SHARE * hard + SHARE * TEMPERATURE**2 * soft


def lose_in_chunks(inputs: Inputs, mix: str) -> torch.Tensor:
    loss, _ = fused.chunked_losses(
        inputs.hidden,
        Head(inputs.weight),
        inputs.labels,
        torch.ones(len(inputs.labels), dtype=torch.bool),
        MIXES[mix],
        [SHARE, SHARE],
        DenseTeacher(inputs.teacher_hidden, Head(inputs.teacher_weight)),
    )
    return loss


def lose_as_liger(inputs: Inputs, mix: str, compiled: bool) -> torch.Tensor:
    """Its losses have no T^2 and are means over tokens."""
    sys.path.append(os.environ["NIGHTPRESS_LIGER"])
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=SHARE,
        weight_soft_loss=SHARE * TEMPERATURE**2,
        beta=0.0 if MIXES[mix][1].kind == "forward_kl" else 0.5,  # 0 is its forward KL
        temperature=TEMPERATURE,
        compiled=compiled,
    )
    value: torch.Tensor = loss(
        inputs.hidden,
        inputs.weight,
        inputs.teacher_hidden,
        inputs.teacher_weight,
        inputs.labels,
    )
    return value * len(inputs.labels)


WAYS: dict[str, Callable[[Inputs, str], torch.Tensor]] = {
    "plain": lose_plainly,
    "ours": lose_in_chunks,
    "liger": lambda inputs, mix: lose_as_liger(inputs, mix, compiled=False),
    "liger, compiled": lambda inputs, mix: lose_as_liger(inputs, mix, compiled=True),
}


def read_bytes(field: str) -> int:
    """Return VmRSS (memory now) or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
