"""How well a sub-model predicts the calibration text."""

import torch

from tasks.prune.loss import loss_nats


def measure(logits_NSV: torch.Tensor, ids_NS: torch.Tensor) -> float:
    """Return the negative loss in nats/token."""
    return -loss_nats(logits_NSV, ids_NS)
