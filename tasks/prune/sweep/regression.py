"""What each unit contributes: Bayesian ridge regression in its dual form, in closed form.

Model of a sub-model m (kept units are 1), scored in group g (its unit of work: the same windows):

    utility = intercept_g + m . w + noise,    w = scale x prior + delta,    delta_u ~ N(0, s_u^2)

The intercepts and the prior's scale have flat priors: they are the columns of F. Units are many
and sub-models few, so everything is done in the space of sub-models, where K = Z S^2 Z^T. With N
an orthonormal basis of what is orthogonal to F, and P = N (N^T K N + lambda I)^-1 N^T,

    delta = S^2 Z^T P y,    leave-one-out error of sub-model i = (P y)_i / P_ii

and lambda, like s among those offered, is the one with the least leave-one-out error.

Reference: Dubrule 1983, "Cross validation of kriging in a unique neighborhood", Mathematical
Geology 15, for the leave-one-out error; Dery et al. 2024, arXiv 2402.05406, for regression of
utilities on masks with a prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PENALTIES = 10.0 ** np.arange(-12, 4.25, 0.5)
"""Values of lambda tried, relative to the mean of K's diagonal."""
TINY = 1e-300


class Fitted(NamedTuple):
    """The posterior mean."""

    weights: Array
    """[num_units]: contribution of each unit, in nats/token."""
    intercepts: Array
    """[num_groups]: utility of a sub-model that keeps nothing."""
    prior_scale: float
    """Nats/token per unit of the prior; 0 without a prior."""
    penalty: float
    """The lambda chosen."""
    loo_rmse: float
    """Root mean square of the leave-one-out errors, in nats/token."""


def fit_utilities(
    masks: Array,
    utilities: Array,
    groups: NDArray[np.int64],
    prior: Array | None,
    spreads: Sequence[Array],
) -> Fitted:
    """Fit the contributions of units to the utilities of sub-models.

    Args:
        masks: [num_submodels, num_units], 1 where the unit is kept.
        utilities: [num_submodels] in nats/token.
        groups: [num_submodels], numbers; each group has an intercept of its own.
        prior: [num_units] importance that the criterion gives, in any unit of measure; or None.
        spreads: Standard deviations of delta up to a common factor, [num_units] each; the one
            with the least leave-one-out error is taken.
    """
    fits = [_fit(masks, utilities, groups, prior, spread) for spread in spreads]
    return min(fits, key=lambda fitted: fitted.loo_rmse)


def _fit(
    masks: Array,
    utilities: Array,
    groups: NDArray[np.int64],
    prior: Array | None,
    spread: Array,
) -> Fitted:
    numbers, membership = np.unique(groups, return_inverse=True)
    flat = np.eye(len(numbers))[membership]
    counts = flat.sum(0)
    centred = masks - flat @ (flat.T @ masks / counts[:, None])
    scaled = centred * spread
    factor = 1 / max(float(np.sqrt((scaled**2).sum(1).mean())), TINY)
    spread, scaled = factor * spread, factor * scaled
    if prior is not None:
        prior_kept = centred @ prior
        size = max(float(np.linalg.norm(prior_kept)), TINY)
        flat = np.column_stack([flat, prior_kept / size])

    basis, singular, _ = np.linalg.svd(flat, full_matrices=True)
    free = basis[:, int((singular > 1e-9 * singular[0]).sum()) :]
    eigenvalues, vectors = np.linalg.eigh(free.T @ scaled @ scaled.T @ free)
    eigenvalues = eigenvalues.clip(0)
    rotated = free @ vectors
    projected = rotated.T @ utilities

    def loo_rmse(penalty: float) -> float:
        inverse = 1 / (eigenvalues + penalty)
        diagonal = (rotated**2 @ inverse).clip(TINY)
        errors = rotated @ (inverse * projected) / diagonal
        return float(np.sqrt((errors**2).mean()))

    penalty = float(min(PENALTIES, key=loo_rmse))
    dual = rotated @ (projected / (eigenvalues + penalty))
    weights = spread * (scaled.T @ dual)
    scale = 0.0
    if prior is not None:
        rest = utilities - masks @ weights
        scale = float(np.linalg.lstsq(flat, rest, rcond=None)[0][-1]) / size
        weights = weights + scale * prior
    rest = utilities - masks @ weights
    intercepts = np.bincount(membership, rest) / counts
    return Fitted(weights, intercepts, scale, penalty, loo_rmse(penalty))


class HeldOut(NamedTuple):
    """Predicted and measured utility of sub-models that a fit has not seen, in nats/token.

    Both are given relative to the mean of the sub-models that were scored on the same windows.
    """

    predicted: Array
    measured: Array

    @property
    def kendall_tau(self) -> float:
        from scipy.stats import kendalltau

        return float(np.nan_to_num(kendalltau(self.predicted, self.measured)[0]))

    @property
    def r_squared(self) -> float:
        residual = ((self.measured - self.predicted) ** 2).sum()
        return float(1 - residual / max((self.measured**2).sum(), TINY))


def hold_out(
    masks: Array,
    utilities: Array,
    groups: NDArray[np.int64],
    prior: Array | None,
    spreads: Sequence[Array],
    counted: NDArray[np.bool_],
) -> HeldOut | None:
    """Predict each group's utilities from a fit to all others; None where there is one group.

    Args:
        counted: [num_submodels] bool: those that are reported.
    """
    numbers = np.unique(groups)
    if len(numbers) < 2:
        return None
    predicted, measured = [], []
    for number in numbers:
        left_out = groups == number
        fitted = fit_utilities(
            masks[~left_out], utilities[~left_out], groups[~left_out], prior, spreads
        )
        chosen = left_out & counted
        if not chosen.any():
            continue
        prediction = masks[chosen] @ fitted.weights
        predicted.append(prediction - prediction.mean())
        measured.append(utilities[chosen] - utilities[chosen].mean())
    return HeldOut(np.concatenate(predicted), np.concatenate(measured))
