"""The loss of a model on calibration windows, in nats/token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

BATCH_WINDOWS = 16


def loss_nats(logits_NSV: torch.Tensor, ids_NS: torch.Tensor) -> float:
    """Return the mean loss in nats/token; the first token of a window is not scored."""
    targets = ids_NS[:, 1:].to(logits_NSV.device)
    return float(F.cross_entropy(logits_NSV[:, :-1].flatten(0, 1).float(), targets.flatten()))


@torch.no_grad()
def predict(model: Any, ids_WS: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids [N, S], logits [N, S, vocabulary]) of BATCH_WINDOWS windows at a time."""
    for batch in torch.split(ids_WS, BATCH_WINDOWS):
        yield batch, model(input_ids=batch.to(model.device), use_cache=False).logits


def measure_loss(model: Any, ids_WS: torch.Tensor) -> float:
    """Return the mean loss in nats/token over windows; the first token of each is not scored."""
    total = sum(loss_nats(logits, ids) * len(ids) for ids, logits in predict(model, ids_WS))
    return total / len(ids_WS)
