"""Fit the last feed-forward sublayer to the dense model's next-token distribution.

What the last sublayer writes goes through the final norm and the head only, so its fit can aim at
what counts, KL(dense || pruned), instead of at the residual stream. With z the logits, p the dense
distribution and q the pruned one, the gradient by z is q - p and the curvature diag(q) - q q^T.

Logits are made anew for some tokens at a time and never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from tasks.prune.repair.feed_forward import FeedForward, curvature_tokens
from tasks.prune.repair.gauss_newton import Linearised, Parameters
from tasks.prune.repair.least_squares import Affine

LOGITS_PER_CHUNK = 2**23


class Readout(NamedTuple):
    """KL(dense || pruned) in nats, the mean over tokens; a problem for `minimise`."""

    x_TI: torch.Tensor
    before_TD: torch.Tensor
    """The pruned residual stream before the sublayer."""
    dense_TD: torch.Tensor
    """The dense residual stream after it."""
    norm: Callable[[torch.Tensor], torch.Tensor]
    """The final norm."""
    head: Affine
    """[vocabulary, hidden]"""

    def tokens(self, part: slice) -> Readout:
        return self._replace(
            x_TI=self.x_TI[part],
            before_TD=self.before_TD[part],
            dense_TD=self.dense_TD[part],
        )

    def loss(self, sublayer: FeedForward) -> float:
        after_TD = self.before_TD + sublayer(self.x_TI)
        total = 0.0
        for rows in self._chunks(len(after_TD)):
            log_p = self._log_probabilities(self.norm(self.dense_TD[rows]))
            log_q = self._log_probabilities(self.norm(after_TD[rows]))
            total += float((log_p.exp() * (log_p - log_q)).sum())
        return total / len(after_TD)

    def linearise(self, sublayer: FeedForward) -> Linearised:
        jacobian = sublayer.linearise(self.x_TI)
        after_TD = self.before_TD + jacobian.outputs()
        gradient_TD = torch.empty_like(after_TD)
        for rows in self._chunks(len(after_TD)):
            p = self._log_probabilities(self.norm(self.dense_TD[rows])).exp()
            normed_TD, pull, *_ = torch.func.vjp(self.norm, after_TD[rows])
            error = self._log_probabilities(normed_TD).exp() - p
            (gradient_TD[rows],) = pull(error.to(normed_TD) @ self.head.weight_OI)
        gradient = jacobian.transposed(gradient_TD / len(after_TD))

        tokens = curvature_tokens(len(after_TD))
        part, few_TD = jacobian.some(tokens), after_TD[tokens]

        def curvature(direction: Parameters) -> Parameters:
            change_TD = part.forward(direction)
            curved_TD = torch.empty_like(change_TD)
            for rows in self._chunks(len(few_TD)):
                normed_TD, change, *_ = torch.func.jvp(
                    self.norm, (few_TD[rows],), (change_TD[rows],)
                )
                q = self._log_probabilities(normed_TD).exp()
                pushed = change @ self.head.weight_OI.T
                curved = q * (pushed - (q * pushed).sum(-1, keepdim=True))
                _, pull, *_ = torch.func.vjp(self.norm, few_TD[rows])
                (curved_TD[rows],) = pull(curved.to(change) @ self.head.weight_OI)
            return part.transposed(curved_TD / len(few_TD))

        weight_T = few_TD.square().mean(-1).clamp_min(1e-12).reciprocal()
        return Linearised(gradient, curvature, part.diagonal(weight_T))

    def _log_probabilities(self, normed_TD: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.head(normed_TD).float(), -1)

    def _chunks(self, num_tokens: int) -> Iterator[slice]:
        size = max(1, LOGITS_PER_CHUNK // len(self.head.weight_OI))
        for first in range(0, num_tokens, size):
            yield slice(first, first + size)
