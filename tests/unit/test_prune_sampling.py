"""Sub-models have the final shape, lie near the criterion's choice, and come in pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.prune.sweep.sampling import (
    choose_best,
    draw_independent,
    draw_pair,
    draw_submodel,
    keep_probabilities,
    rank,
)

SIZES = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_both_of_a_pair_keep_exactly_the_number(sizes: tuple[int, int], seed: int) -> None:
    num_units, num_kept = sizes
    pair = draw_pair(np.arange(num_units), num_kept, np.random.default_rng(seed))
    assert [int(kept.sum()) for kept in pair] == [num_kept, num_kept]


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES)
def test_probabilities_fall_with_rank_and_sum_to_the_number(sizes: tuple[int, int]) -> None:
    num_units, num_kept = sizes
    probabilities = keep_probabilities(np.arange(num_units), num_kept)
    assert np.isclose(probabilities.sum(), num_kept)
    assert (np.diff(probabilities) <= 0).all()
    assert ((probabilities > 0) & (probabilities <= 1)).all()


def test_units_are_kept_as_often_as_their_probability_says() -> None:
    ranks, num_draws = np.arange(40), 4000
    rng = np.random.default_rng(0)
    kept = np.mean([draw_pair(ranks, 25, rng)[0] for _ in range(num_draws)], axis=0)
    np.testing.assert_allclose(kept, keep_probabilities(ranks, 25), atol=4 * 0.5 / num_draws**0.5)


def test_a_pair_shares_as_little_as_the_probabilities_allow() -> None:
    """A unit of probability p is in both with max(0, 2p - 1), in neither with max(0, 1 - 2p)."""
    ranks, num_draws = np.arange(40), 4000
    rng = np.random.default_rng(0)
    pairs = np.array([draw_pair(ranks, 25, rng) for _ in range(num_draws)])
    probabilities = keep_probabilities(ranks, 25)
    tolerance = 4 * 0.5 / num_draws**0.5
    both = np.maximum(0, 2 * probabilities - 1)
    np.testing.assert_allclose((pairs[:, 0] & pairs[:, 1]).mean(0), both, atol=tolerance)
    neither = np.maximum(0, 1 - 2 * probabilities)
    np.testing.assert_allclose((~pairs[:, 0] & ~pairs[:, 1]).mean(0), neither, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(num_units=st.integers(1, 99), seed=st.integers(0, 2**32 - 1))
def test_independent_pairs_are_complements_at_one_half(num_units: int, seed: int) -> None:
    first, second = draw_independent(2 * num_units, num_units, np.random.default_rng(seed))
    same = np.flatnonzero(first == second)
    assert first.any() and second.any()
    assert len(same) <= 2  # a sub-model that would keep nothing keeps one unit


def test_independent_units_are_kept_as_often_as_the_density_says() -> None:
    rng = np.random.default_rng(0)
    pairs = np.array([draw_independent(40, 30, rng) for _ in range(4000)])
    np.testing.assert_allclose(pairs.mean(0).mean(1), 0.75, atol=0.01)
    assert np.unique(pairs[:, 0].sum(1)).size > 5


@pytest.mark.parametrize("sampling", ["near", "independent"])
def test_a_submodel_is_fixed_by_seed_and_number(sampling: str) -> None:
    importance = [np.random.default_rng(0).random(n) for n in (4, 60, 4, 60)]
    num_kept = [2, 30, 2, 30]

    def draw(seed: int, number: int) -> bytes:
        kept = draw_submodel(importance, num_kept, seed, number, sampling)
        return b"".join(k.tobytes() for k in kept)

    assert draw(0, 5) == draw(0, 5)
    assert len({draw(0, number) for number in range(20)} | {draw(1, 0)}) == 21


def test_the_best_are_kept_and_the_first_of_equals() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.5, 0.5])
    (kept,) = choose_best([scores], [3])
    assert kept.tolist() == [False, True, True, True, False]
    assert rank(scores).tolist() == [4, 0, 1, 2, 3]
