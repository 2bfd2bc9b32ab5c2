"""Metrics equal scikit-learn's and scipy's, one sample at a time and over resamples at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from tasks.evaluate.metrics import METRICS, Floats, average_metrics, average_tasks

OF_CLASSES = {
    "accuracy": accuracy_score,
    "f1": lambda gold, said: f1_score(gold, said, zero_division=0),
    "f1_macro": lambda gold, said: f1_score(gold, said, average="macro", zero_division=0),
    "matthews": matthews_corrcoef,
}
OF_SCORES = {
    "pearson": lambda gold, said: pearsonr(gold, said).statistic,
    "spearman": lambda gold, said: spearmanr(gold, said).statistic,
}


def measure(metric: str, gold: Floats, said: Floats) -> float:
    return float(METRICS[metric](gold, said, np.ones(gold.size)))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(OF_CLASSES)),
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(2, 4),
)
def test_metrics_of_classes_are_scikit_learns(
    metric: str, seed: int, num_items: int, num_classes: int
) -> None:
    rng = np.random.default_rng(seed)
    if metric == "f1":
        num_classes = 2
    gold, said = rng.integers(0, num_classes, (2, num_items)).astype(float)
    expected = OF_CLASSES[metric](gold, said)
    assert measure(metric, gold, said) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(OF_SCORES)), st.integers(0, 10_000), st.integers(3, 40))
def test_metrics_of_scores_are_scipys(metric: str, seed: int, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 6, num_items) + 0.1 * rng.random(num_items).round(1)  # with ties
    said = gold + rng.normal(0, 2, num_items)
    if np.ptp(gold) > 0:
        expected = OF_SCORES[metric](gold, said)
        assert measure(metric, gold, said) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_a_weight_counts_as_so_many_items(metric: str) -> None:
    rng = np.random.default_rng(0)
    gold, said = rng.integers(0, 2, (2, 30)).astype(float)
    weights = rng.integers(0, 4, (7, 30)).astype(float)
    weights[0, gold == 1] = 0  # a class that is missing
    together = METRICS[metric](gold, said, weights)
    assert together.shape == (7,)
    drawn = [np.repeat(np.arange(30), row.astype(int)) for row in weights]
    assert together == pytest.approx([measure(metric, gold[d], said[d]) for d in drawn], abs=1e-12)


def test_large_samples_do_not_overflow() -> None:
    gold = np.tile([0.0, 1.0], 200_000)
    assert measure("matthews", gold, gold) == pytest.approx(1.0)
    assert measure("matthews", gold, 1 - gold) == pytest.approx(-1.0)


def test_a_tasks_score_is_the_mean_of_its_metrics() -> None:
    gold, said = np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 0, 0])
    score = average_metrics(["accuracy", "f1"], gold, said, np.ones(4))
    assert float(score) == pytest.approx((0.75 + 2 / 3) / 2)


GLUE = """
68.7  44.1  68.6       70.8,82.3  71.1  88.0,84.3  53.4  91.5  70.3,70.5  56.3
78.0  55.8  83.7,84.1  86.3,90.5  91.1  90.9,87.7  68.6  92.1  89.0,88.6  43.7
75.2  42.5  81.6,81.1  82.4,88.3  85.5  90.6,87.7  60.0  92.7  84.5,85.0  55.6
"""
"""Macro score and the tasks' metrics, CoLA to WNLI, of ELMo, BERT-base and DistilBERT.

Reference: Sanh et al. 2019, arXiv 1910.01108, table 1, as first published.
"""


@pytest.mark.parametrize("line", GLUE.split("\n")[1:-1])
def test_the_macro_average_is_glues(line: str) -> None:
    macro, *tasks = line.split()
    scores = {
        f"task{number}": {f"metric{n}": float(score) for n, score in enumerate(task.split(","))}
        for number, task in enumerate(tasks)
    }
    assert average_tasks(scores) == pytest.approx(float(macro), abs=0.051)
