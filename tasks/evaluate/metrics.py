"""Metrics of labelled items that have weights, so that a resample is the items' counts in it.

`gold` [C] holds what is right and `predicted` [C] what a model said: class numbers, or the scores
of a regression. `weights` [..., C] says how often each is counted, in one sample or in many at
once, and a metric is [...]. What a metric does not define counts as 0: no item of the class, a
constant score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POSITIVE = 1
"""The class whose F1 is meant where there are two: the second label, as in GLUE."""


def accuracy(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    return divide(count(gold == predicted, weights), weights.sum(axis=-1))


def f1(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    """2 TP / (2 TP + FP + FN) of class 1."""
    hits, named = confuse(gold, predicted, weights, POSITIVE)
    return divide(2 * hits, named)


def f1_macro(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    """Mean of each class's F1, over the classes that are met in the sample or predicted for it."""
    classes = np.union1d(gold, predicted)
    counts = [confuse(gold, predicted, weights, label) for label in classes]
    scores = np.array([divide(2 * hits, named) for hits, named in counts])
    met = np.array([named > 0 for _, named in counts])
    return divide(scores.sum(axis=0), met.sum(axis=0))


def matthews(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    """Correlation of two classifications, R_K.

    Reference: Gorodkin 2004, doi 10.1016/j.compbiolchem.2004.09.006, equation 8; with two classes
    it is Matthews's coefficient.
    """
    num_items = weights.sum(axis=-1)
    classes = np.union1d(gold, predicted)
    right, said = ([count(x == label, weights) for label in classes] for x in (gold, predicted))
    chance = sum(r * s for r, s in zip(right, said, strict=True))
    covariance = count(gold == predicted, weights) * num_items - chance
    spreads = [np.sqrt(num_items**2 - sum(c**2 for c in counts)) for counts in (right, said)]
    return divide(covariance, spreads[0] * spreads[1])


def pearson(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    """Linear correlation; gold and predicted may be [..., C], too."""
    total = weights.sum(axis=-1, keepdims=True)
    x = gold - (weights * gold).sum(axis=-1, keepdims=True) / total
    y = predicted - (weights * predicted).sum(axis=-1, keepdims=True) / total
    spread = np.sqrt((weights * x * x).sum(axis=-1) * (weights * y * y).sum(axis=-1))
    return divide((weights * x * y).sum(axis=-1), spread)


def spearman(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    """Correlation of the ranks; ties share the mean of theirs."""
    return pearson(rank(gold, weights), rank(predicted, weights), weights)


def mean(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    """Mean of scores that items have by themselves; `gold` is not looked at."""
    return divide(weights @ predicted, weights.sum(axis=-1))


METRICS: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    metric.__name__: metric
    for metric in (accuracy, f1, f1_macro, matthews, pearson, spearman, mean)
}


def count(which: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the weight of some items, [...]."""
    return np.asarray(weights @ which.astype(np.float64))


def confuse(
    gold: Floats, predicted: Floats, weights: Floats, label: float
) -> tuple[Floats, Floats]:
    """Return TP and 2 TP + FP + FN of one class."""
    hits = count((gold == label) & (predicted == label), weights)
    return hits, count(gold == label, weights) + count(predicted == label, weights)


def rank(values: Floats, weights: Floats) -> Floats:
    """Return the items' ranks in each sample, [..., C]: of a tie the mean, of weights the count."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sizes = np.add.reduceat(weights[..., order], starts, axis=-1)
    ranks: Floats = (np.cumsum(sizes, axis=-1) - (sizes - 1) / 2)[..., group]
    return ranks


def divide(above: Floats, below: Floats) -> Floats:
    """Return above / below, and 0 where nothing is below."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)


def average_metrics(metrics: list[str], gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    """Return a task's score: the mean of its metrics."""
    scores = [METRICS[name](gold, predicted, weights) for name in metrics]
    return np.asarray(np.mean(scores, axis=0))


def average_tasks(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return GLUE's macro average: the mean over tasks of the mean of each task's metrics.

    Reference: Wang et al. 2018, arXiv 1804.07461, on the benchmark's evaluation.
    """
    return fmean(fmean(task.values()) for task in scores.values())
