"""What several voters of unknown accuracy say of a row, resolved into one label.

A voter is right with probability a_j, whatever the label, and otherwise says any of the K - 1 other
labels alike; it may abstain, which says nothing:

    p(y | votes) ~ prod_j (a_j if vote_j = y else (1 - a_j) / (K - 1))     over those that vote
    a_j = mean over its votes of p(vote_j | votes), or of PRIOR_ACCURACY where no other voter votes

in turns until they agree; no voter counts as worse than a guess. Both restraints are for rules that
each only ever say one label. All that such rules show is that those of different labels contradict
each other, which "every row has this label, and all rules for others are wrong" explains as well as
the truth does; and votes that nobody else speaks to would follow whichever label came to be
believed. For the same reason labels are taken to be equally frequent.

Reference: Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the
EM algorithm", with one error rate a voter (the one-coin model of Zhang et al. 2014, arXiv
1406.3824), since a voter that only ever says one label has no table of errors; abstentions as in
Ratner et al. 2016, arXiv 1605.07723.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

Votes = tuple[int | None, ...]
"""The number of a label, or None, for each voter."""
Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

PRIOR_ACCURACY = 0.7
"""Of a voter at first, and of its votes that no other voter speaks to."""
MAX_ACCURACY = 0.999
MAX_ROUNDS = 200
TOLERANCE = 1e-6


def count_majority(votes: Votes, num_labels: int) -> Floats:
    """Return each label's share of the votes, [num_labels]. At least one voter must vote."""
    counts = np.bincount([vote for vote in votes if vote is not None], minlength=num_labels)
    shares: Floats = counts / counts.sum()
    return shares


def weigh_votes(votes: Votes, accuracies: Sequence[float], num_labels: int) -> Floats:
    """Return p(label | votes), [num_labels]."""
    logs = np.zeros(num_labels)
    for vote, accuracy in zip(votes, accuracies, strict=True):
        if vote is not None:
            wrong = np.log((1 - accuracy) / (num_labels - 1))
            logs += wrong
            logs[vote] += np.log(accuracy) - wrong
    scaled = np.exp(logs - logs.max())
    shares: Floats = scaled / scaled.sum()
    return shares


def fit_accuracies(patterns: Counter[Votes], num_labels: int) -> list[float]:
    """Return how often each voter is right, as the others' votes show.

    Args:
        patterns: How often each combination of votes was met; rows themselves are not needed.
    """
    num_voters = len(next(iter(patterns)))
    accuracies = [PRIOR_ACCURACY] * num_voters
    for _ in range(MAX_ROUNDS):
        right, cast = np.zeros(num_voters), np.full(num_voters, 1e-9)
        for votes, count in patterns.items():
            alone = sum(vote is not None for vote in votes) == 1
            labels = weigh_votes(votes, accuracies, num_labels)
            for voter, vote in enumerate(votes):
                if vote is not None:
                    right[voter] += count * (PRIOR_ACCURACY if alone else labels[vote])
                    cast[voter] += count
        before = accuracies
        accuracies = np.clip(right / cast, 1 / num_labels, MAX_ACCURACY).tolist()
        if max(abs(a - b) for a, b in zip(accuracies, before, strict=True)) < TOLERANCE:
            break
    return accuracies
