"""Self-training: a light classifier labels the rows that it is surest of, and learns from them.

The classifier is logistic regression over TF-IDF of words and pairs of words. It begins with the
rows that have labels already, from sources or from labellers before this one.

Reference: Yarowsky 1995, "Unsupervised word sense disambiguation rivaling supervised methods";
classes in balance after Nigam and Ghani 2000, "Analyzing the effectiveness and applicability of
co-training".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tasks.corpus.context import CorpusContext
from tasks.corpus.shards import Rows
from tasks.corpus.words import input_texts, split_words
from tasks.errors import CorpusError

USES = ()

NO_LABEL = -1
INVERSE_PENALTY = 10.0
"""At scikit-learn's own 1, a few hundred labels leave every probability below a cut of 0.8."""
Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


def label(
    context: CorpusContext,
    rows: Rows,
    *,
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.8,
    rows_per_label: Annotated[int, Field(gt=0)] = 500,
    max_rounds: Annotated[int, Field(gt=0)] = 20,
) -> Iterator[str | None]:
    """Yield a label for each row that one round was sure of.

    A round labels as many rows of one label as of any other, the surest first, at most
    `rows_per_label`; it is the last when some label has no row above the cut. How many each round
    has labelled is in `context.spent`. All rows' word counts are in memory, about 12 bytes for each
    different word or pair of a row.

    Args:
        min_confidence: Of the classifier's probability.

    Raises:
        ValueError: the task is no classification.
        CorpusError: a label that no row has to begin with.
    """
    if context.task is None or context.task.kind != "classification":
        raise ValueError("self_training gives labels: expected task.kind: classification")
    labels = context.task.labels
    number = {name: index for index, name in enumerate(labels)}
    known = np.array([number[r["output"]] if r["output"] else NO_LABEL for r in rows], np.int64)
    check_seeds(known, labels)
    vectorizer = TfidfVectorizer(
        tokenizer=split_words,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, 2),
        sublinear_tf=True,
        dtype=np.float32,
    )
    features = vectorizer.fit_transform("\n".join(input_texts(row)) for row in rows)
    for round_number in range(1, max_rounds + 1):
        chosen = choose_surest(features, known, len(labels), min_confidence, rows_per_label)
        if not len(chosen):
            break
        known[chosen[:, 0]] = chosen[:, 1]
        context.spent[f"self_training: rows labelled in round {round_number:02d}"] = len(chosen)
    yield from (None if which == NO_LABEL else labels[which] for which in known)


def check_seeds(known: Numbers, labels: list[str]) -> None:
    counts = {name: int((known == index).sum()) for index, name in enumerate(labels)}
    if missing := [name for name, count in counts.items() if not count]:
        raise CorpusError(
            f"self_training: no row is labelled {missing[0]!r} to begin with, got {counts}",
            "add a source with labels, or a labeller such as rules before it",
        )


def choose_surest(
    features: Any, known: Numbers, num_labels: int, min_confidence: float, most: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (row, label) for the rows that a round labels, [num_chosen, 2].

    Args:
        features: Sparse, [num_rows, num_features].
        known: Number of the label, or NO_LABEL, [num_rows].
        most: Rows of one label.
    """
    unlabelled = np.flatnonzero(known == NO_LABEL)
    if not len(unlabelled):
        return np.empty((0, 2), np.int64)
    labelled = np.flatnonzero(known != NO_LABEL)
    classifier = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=1000)
    classifier.fit(features[labelled], known[labelled])
    probs = classifier.predict_proba(features[unlabelled])
    # Machines differ in the last digits, which must not decide who is the surest.
    guess, confidence = probs.argmax(axis=1), probs.max(axis=1).round(6)
    surest = np.argsort(-confidence, kind="stable")
    surest = surest[confidence[surest] >= min_confidence]
    each = [surest[guess[surest] == which] for which in range(num_labels)]
    size = min(most, *map(len, each))
    return np.concatenate(
        [np.stack([unlabelled[rows[:size]], guess[rows[:size]]], axis=1) for rows in each]
    )
