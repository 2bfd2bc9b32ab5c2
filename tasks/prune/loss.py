"""The loss of a model on calibration windows, in nats/token."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

BATCH_WINDOWS = 16


def loss_nats(logits_NSV: torch.Tensor, ids_NS: torch.Tensor) -> float:
    """Return the mean loss in nats/token; the first token of a window is not scored."""
    targets = ids_NS[:, 1:].to(logits_NSV.device)
    return float(F.cross_entropy(logits_NSV[:, :-1].flatten(0, 1).float(), targets.flatten()))


def measure_loss(model: Any, ids_WS: torch.Tensor) -> float:
    """Return the mean loss in nats/token over windows; the first token of each is not scored."""
    total = 0.0
    with torch.inference_mode():
        for first in range(0, len(ids_WS), BATCH_WINDOWS):
            batch = ids_WS[first : first + BATCH_WINDOWS]
            logits = model(input_ids=batch.to(model.device), use_cache=False).logits
            total += loss_nats(logits, batch) * len(batch)
    return total / len(ids_WS)
