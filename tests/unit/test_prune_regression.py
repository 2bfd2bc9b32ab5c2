"""The regression recovers what was planted, and says honestly how well it predicts."""

import numpy as np
import pytest

from tasks.prune.sweep.regression import fit_utilities, hold_out

NUM_UNITS = 24


def plant(num_submodels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 2, (num_submodels, NUM_UNITS)).astype(float)
    return masks, rng.normal(size=NUM_UNITS)


@pytest.mark.parametrize("with_prior", [False, True])
def test_noiseless_weights_are_recovered(with_prior: bool) -> None:
    masks, weights = plant(num_submodels=3 * NUM_UNITS)
    prior = np.random.default_rng(1).random(NUM_UNITS) if with_prior else None
    groups = np.zeros(len(masks), dtype=np.int64)
    fitted = fit_utilities(masks, masks @ weights - 3, groups, prior, [np.ones(NUM_UNITS)])
    np.testing.assert_allclose(fitted.weights, weights, atol=1e-6)
    np.testing.assert_allclose(fitted.intercepts, [-3], atol=1e-6)


def test_every_group_has_its_own_intercept() -> None:
    masks, weights = plant(num_submodels=3 * NUM_UNITS)
    groups = np.arange(len(masks)) % 4
    utilities = masks @ weights + np.array([5.0, -7.0, 0.0, 1.0])[groups]
    fitted = fit_utilities(masks, utilities, groups, None, [np.ones(NUM_UNITS)])
    np.testing.assert_allclose(fitted.weights, weights, atol=1e-6)
    np.testing.assert_allclose(fitted.intercepts, [5, -7, 0, 1], atol=1e-6)


def test_complement_pairs_leave_the_intercept_unbiased() -> None:
    """Pairs that complement have the mean mask 1/2, where the fit is the mean utility, however
    few they are and however strongly the weights are shrunk."""
    rng = np.random.default_rng(0)
    half, weights = plant(num_submodels=6)
    masks = np.concatenate([half, 1 - half])
    utilities = masks @ weights + 2 + rng.normal(scale=0.5, size=6).repeat(2)
    groups = np.zeros(len(masks), dtype=np.int64)
    fitted = fit_utilities(masks, utilities, groups, None, [np.ones(NUM_UNITS)])
    at_half = fitted.intercepts[0] + 0.5 * fitted.weights.sum()
    assert at_half == pytest.approx(utilities.mean(), abs=1e-9)
    noiseless = masks @ weights + 2
    fitted = fit_utilities(masks, noiseless, groups, None, [np.ones(NUM_UNITS)])
    at_half = fitted.intercepts[0] + 0.5 * fitted.weights.sum()
    assert at_half == pytest.approx(2 + 0.5 * weights.sum(), abs=1e-9)


def test_a_true_prior_is_scaled_and_taken() -> None:
    """With fewer sub-models than units, what the prior says of the rest is what remains."""
    masks, _ = plant(num_submodels=NUM_UNITS // 2)
    prior = np.random.default_rng(2).random(NUM_UNITS) * 100
    noise = np.random.default_rng(3).normal(scale=1e-3, size=len(masks))
    groups = np.zeros(len(masks), dtype=np.int64)
    fitted = fit_utilities(masks, 0.02 * masks @ prior + noise, groups, prior, [np.ones(NUM_UNITS)])
    assert fitted.prior_scale == pytest.approx(0.02, rel=0.02)
    np.testing.assert_allclose(fitted.weights, 0.02 * prior, atol=0.02)


def test_pure_noise_is_not_believed() -> None:
    masks, _ = plant(num_submodels=40)
    utilities = np.random.default_rng(5).normal(size=40)
    groups = np.zeros(40, dtype=np.int64)
    fitted = fit_utilities(masks, utilities, groups, None, [np.ones(NUM_UNITS)])
    predicted = masks @ fitted.weights
    assert predicted.std() < 0.5 * utilities.std()


def test_held_out_figures_tell_signal_from_noise() -> None:
    masks, weights = plant(num_submodels=96)
    groups = np.arange(96) // 8
    counted = np.arange(96) % 8 > 0
    noise = np.random.default_rng(7).normal(size=96)
    good = hold_out(masks, masks @ weights, groups, None, [np.ones(NUM_UNITS)], counted)
    bad = hold_out(masks, noise, groups, None, [np.ones(NUM_UNITS)], counted)
    assert good and bad
    assert len(good.predicted) == counted.sum()
    assert good.kendall_tau > 0.95
    assert good.r_squared > 0.99
    assert abs(bad.kendall_tau) < 0.3
    assert bad.r_squared < 0.2


def test_one_group_leaves_nothing_to_hold_out() -> None:
    masks, weights = plant(num_submodels=8)
    groups = np.zeros(8, dtype=np.int64)
    everything = np.ones(8, dtype=bool)
    assert hold_out(masks, masks @ weights, groups, None, [np.ones(NUM_UNITS)], everything) is None


def test_the_spread_that_predicts_best_is_taken() -> None:
    """The first half of the units matter and the others do not: one of the spreads says so."""
    masks, weights = plant(num_submodels=NUM_UNITS)
    matters = np.arange(NUM_UNITS) < NUM_UNITS // 2
    noise = np.random.default_rng(4).normal(scale=0.1, size=len(masks))
    utilities = masks @ (weights * matters) + noise
    groups = np.zeros(len(masks), dtype=np.int64)
    right, wrong = np.where(matters, 1.0, 1e-3), np.where(matters, 1e-3, 1.0)
    fits = [fit_utilities(masks, utilities, groups, None, s) for s in ([right], [wrong])]
    both = fit_utilities(masks, utilities, groups, None, [wrong, right])
    assert both.loo_rmse == fits[0].loo_rmse < fits[1].loo_rmse
    np.testing.assert_array_equal(both.weights, fits[0].weights)
