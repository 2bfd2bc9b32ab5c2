"""Every utility: the dense model is worth the most, worse models less, by plain numbers."""

import math

import pytest
import torch

from tasks.plugins import plugin_names
from tasks.prune.utility import load_utility


def logits_and_ids(num_windows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict their ids well, as a dense model's do."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(11, (num_windows, 7), generator=rng)
    targets = torch.nn.functional.one_hot(ids.roll(-1, 1), 11)
    return 3.0 * targets + torch.randn(num_windows, 7, 11, generator=rng), ids


@pytest.mark.parametrize("name", plugin_names("utility"))
def test_it_falls_as_the_prediction_gets_worse(name: str) -> None:
    utility = load_utility(name)
    dense, ids = logits_and_ids()
    noise = torch.randn(dense.shape, generator=torch.Generator().manual_seed(1))
    values = [utility.score(dense + size * noise, ids, dense) for size in (0.0, 2.0, 8.0)]
    assert all(math.isfinite(value) for value in values)
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("name", plugin_names("utility"))
def test_it_is_the_mean_over_windows(name: str) -> None:
    utility = load_utility(name)
    dense, ids = logits_and_ids()
    logits = dense.flip(-1)
    together = utility.score(logits, ids, dense)
    alone = [utility.score(*(x[i : i + 1] for x in (logits, ids, dense))) for i in range(3)]
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_kl_is_the_textbook_sum() -> None:
    dense, ids = logits_and_ids()
    utility = load_utility("kl")
    assert utility.score(dense, ids, dense) == pytest.approx(0, abs=1e-6)
    p, q = dense[:, :-1].softmax(-1), (0.5 * dense[:, :-1]).softmax(-1)
    expected = float((p * (p / q).log()).sum(-1).mean())
    assert utility.score(0.5 * dense, ids, dense) == pytest.approx(-expected, rel=1e-4)
