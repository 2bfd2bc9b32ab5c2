"""GOBO: outliers, centroids, and the degenerate matrices."""

import itertools
import math

import pytest
import torch

from tasks.models.quantized_tensor import effective_bits
from tasks.quantize.methods import gobo


def normal_weight(num_rows: int = 40, num_columns: int = 96, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_columns, generator=generator) * 0.04


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outliers_come_back_bit_exact_and_the_rest_takes_2_to_the_b_values(bits: int) -> None:
    weight = normal_weight()
    planted = {(0, 0): 1.2345678, (17, 50): -0.7654321, (39, 95): 3.3333333}
    for place, value in planted.items():
        weight[place] = value
    done = gobo.quantize_weight(weight, bits)
    assert done.outliers is not None
    values = done.dequantize()
    is_outlier = torch.zeros(weight.numel(), dtype=torch.bool)
    is_outlier[done.outliers.positions.long()] = True
    is_outlier = is_outlier.view(weight.shape)
    assert all(is_outlier[place] for place in planted)
    assert torch.equal(values[is_outlier], weight[is_outlier])
    assert len(values[~is_outlier].unique()) <= 2**bits
    assert is_outlier.float().mean() < 0.01
    assert done.facts["outlier_fraction"] == pytest.approx(float(is_outlier.float().mean()))


def test_outliers_are_those_below_the_log_density() -> None:
    weight = normal_weight()
    weight[3, 5] = 0.3
    mean, deviation = weight.double().mean(), weight.double().std(correction=0)
    density = torch.distributions.Normal(mean, deviation).log_prob(weight.double())
    assert torch.equal(gobo.find_outliers(weight, -4.0), density < -4.0)
    assert torch.equal(gobo.find_outliers(weight, -1.0), density < -1.0)
    assert gobo.find_outliers(weight, -1.0).sum() > gobo.find_outliers(weight, -4.0).sum() > 0


def slow_centroids(values: list[float], num_levels: int) -> list[float]:
    """The same iteration, weight by weight."""
    edges = [len(values) * i // num_levels for i in range(num_levels + 1)]
    tried = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    best, least = tried, math.inf
    while True:
        nearest = [min(range(num_levels), key=lambda k: abs(v - tried[k])) for v in values]
        distance = sum(abs(v - tried[k]) for v, k in zip(values, nearest, strict=True))
        if distance >= least - 1e-12:
            return best
        best, least = tried, distance
        members = [
            [v for v, n in zip(values, nearest, strict=True) if n == k] for k in range(num_levels)
        ]
        tried = [sum(m) / len(m) if m else c for m, c in zip(members, tried, strict=True)]


@pytest.mark.parametrize(("num_values", "num_levels"), [(64, 4), (200, 8), (1000, 8), (97, 16)])
def test_centroids_are_those_of_the_iteration_written_out(num_values: int, num_levels: int) -> None:
    generator = torch.Generator().manual_seed(num_values)
    values = torch.randn(num_values, generator=generator, dtype=torch.float64).sort().values
    got = gobo.fit_centroids(values, num_levels)
    assert got.tolist() == pytest.approx(slow_centroids(values.tolist(), num_levels), abs=1e-9)


def test_centroids_beat_equal_steps() -> None:
    weight = normal_weight()
    done = gobo.quantize_weight(weight, 3)
    step = weight.abs().max() / 3
    uniform = (weight / step).round() * step
    assert (done.dequantize() - weight).abs().sum() < (uniform - weight).abs().sum() / 2


def test_weights_go_to_the_nearest_centroid() -> None:
    weight = normal_weight()
    done = gobo.quantize_weight(weight, 3)
    nearest = (weight[..., None] - done.table).abs().amin(dim=2)
    assert done.outliers is not None
    difference = (weight - done.dequantize()).abs().flatten()
    difference[done.outliers.positions.long()] = 0
    expected = nearest.flatten()
    expected[done.outliers.positions.long()] = 0
    assert torch.allclose(difference, expected, atol=1e-8)


def test_few_values_come_back_as_they_are() -> None:
    assert torch.equal(gobo.quantize_weight(torch.zeros(3, 8)).dequantize(), torch.zeros(3, 8))
    constant = torch.full((2, 8), 0.25)
    assert torch.equal(gobo.quantize_weight(constant).dequantize(), constant)
    tiny = torch.tensor([[0.01, -0.02, 0.03]])
    assert torch.equal(gobo.quantize_weight(tiny).dequantize(), tiny)


def test_a_row_of_zeros_stays_and_costs_no_outliers() -> None:
    weight = normal_weight()
    weight[7] = 0
    done = gobo.quantize_weight(weight, 3)
    assert not done.dequantize()[7].any()
    assert done.outliers is not None
    assert len(done.outliers.values) < 20


def test_bits() -> None:
    """3 bits, and 64 for each outlier and 32 for each centroid."""
    weight = normal_weight(num_rows=64, num_columns=512)
    done = gobo.quantize_weight(weight, 3)
    assert done.outliers is not None
    extra = (64 * len(done.outliers.values) + 32 * 8) / weight.numel()
    assert effective_bits({"w": done}) == pytest.approx(3 + extra)
