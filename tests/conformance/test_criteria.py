"""What every file in tasks/prune/criteria must keep to."""

import inspect

import pytest
import torch

from tasks.plugins import load_plugin, plugin_names, resolve_options
from tasks.prune.unit_statistics import UnitStatistics

NUM_UNITS, ROWS, WIDTH, HIDDEN = 12, 5, 3, 7


@pytest.fixture(params=plugin_names("criterion"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw(seed: int = 0) -> UnitStatistics:
    generator = torch.Generator().manual_seed(seed)
    return UnitStatistics(
        readers_UrD=torch.randn(NUM_UNITS, ROWS, HIDDEN, generator=generator),
        writer_UwD=torch.randn(NUM_UNITS, WIDTH, HIDDEN, generator=generator),
        input_norm_Uw=torch.rand(NUM_UNITS, WIDTH, generator=generator),
    )


def score(name: str, statistics: UnitStatistics) -> torch.Tensor:
    got = load_plugin("criterion", name)(statistics, **resolve_options("criterion", name, {}))
    assert isinstance(got, torch.Tensor)
    return got


def test_takes_statistics_and_keyword_options(name: str) -> None:
    first, *options = inspect.signature(load_plugin("criterion", name)).parameters.values()
    assert first.name == "statistics"
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)


def test_gives_one_finite_number_per_unit(name: str) -> None:
    scores = score(name, draw())
    assert scores.shape == (NUM_UNITS,)
    assert scores.isfinite().all()
    assert (scores >= 0).all()


def test_importance_permutes_with_its_units(name: str) -> None:
    statistics = draw()
    order = torch.randperm(NUM_UNITS, generator=torch.Generator().manual_seed(1))
    permuted = UnitStatistics(*(tensor[order] for tensor in statistics))
    torch.testing.assert_close(score(name, permuted), score(name, statistics)[order])


def test_same_statistics_give_same_scores(name: str) -> None:
    assert torch.equal(score(name, draw()), score(name, draw()))
    assert not torch.equal(score(name, draw()), score(name, draw(seed=1)))


def test_leaves_the_statistics_alone(name: str) -> None:
    statistics, untouched = draw(), draw()
    score(name, statistics)
    assert all(torch.equal(a, b) for a, b in zip(statistics, untouched, strict=True))
