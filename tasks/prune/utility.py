"""What a sub-model is worth: a plugin's or the user's own function of its logits.

    function(logits_NSV, ids_NS) -> float                  or, to be given the dense model's, too:
    function(logits_NSV, ids_NS, dense_NSV) -> float

for N windows of S token ids and a vocabulary of V; `logits[:, t]` predicts `ids[:, t + 1]`. Higher
is better, in any unit of measure. Nobody differentiates it. NaN and infinity say that a sub-model
cannot be judged. The same arguments must give the same number in every process.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, NamedTuple

import torch

from tasks.outside_code import import_function, is_outside
from tasks.plugins import load_plugin
from tasks.prune.loss import predict


class Utility(NamedTuple):
    function: Callable[..., Any]
    needs_dense: bool

    def score(
        self, logits_NSV: torch.Tensor, ids_NS: torch.Tensor, dense_NSV: torch.Tensor | None
    ) -> float:
        ids_NS = ids_NS.to(logits_NSV.device)
        dense = [dense_NSV] if self.needs_dense else []
        return float(self.function(logits_NSV, ids_NS, *dense))


def load_utility(name: str) -> Utility:
    """Import the function of a plugin's name, or of `package.module:function`.

    Raises:
        ValueError: it does not import, or does not take two or three arguments.
    """
    function = import_function(name) if is_outside(name) else load_plugin("utility", name)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(f"utility {name}: its signature cannot be read; wrap it") from error
    needed = [p for p in parameters if p.default is p.empty and p.kind in positional]
    if len(needed) not in (2, 3):
        raise ValueError(
            f"utility {name} must take (logits, ids) or (logits, ids, dense_logits), got "
            f"({', '.join(p.name for p in parameters)}); give all other parameters defaults"
        )
    return Utility(function, needs_dense=len(needed) == 3)


def measure_utility(
    model: Any,
    ids_WS: torch.Tensor,
    utility: Utility,
    dense: Iterable[torch.Tensor | None] = repeat(None),
) -> float:
    """Return a model's utility, the mean over batches of windows.

    Args:
        dense: The dense model's logits, batch by batch as `predict` cuts them.
    """
    total = 0.0
    for (batch, logits), dense_NSV in zip(predict(model, ids_WS), dense, strict=False):
        total += utility.score(logits, batch, dense_NSV) * len(batch)
    return total / len(ids_WS)


def compare(model: Any, dense_model: Any, ids_WS: torch.Tensor, utility: Utility) -> float | None:
    """Return a smaller model's utility; None where it is no finite number."""
    dense: Iterable[torch.Tensor | None] = repeat(None)
    if utility.needs_dense:
        dense = (logits for _, logits in predict(dense_model, ids_WS))
    value = measure_utility(model, ids_WS, utility, dense)
    return value if math.isfinite(value) else None
