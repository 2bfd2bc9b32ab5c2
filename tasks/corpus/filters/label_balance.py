"""Drop rows of the more frequent labels of a classification until they are balanced."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row
from tasks.errors import CorpusError

USES = ()


def keep(
    context: CorpusContext,
    *,
    ratio: Annotated[float, Field(ge=1)] | None = 1.0,
    max_per_label: Annotated[int, Field(gt=0)] | None = None,
) -> Filter:
    """Keep at most `ratio` times as many rows of each label as the rarest has.

    Which rows of a label stay is drawn by the recipe's seed. Rows without an output stay.

    Args:
        ratio: None for no such limit.
        max_per_label: A limit of rows on top of that.

    Raises:
        ValueError: the task is no classification.
        CorpusError: with a ratio, a label that no row has.
    """
    if context.task is None or context.task.kind != "classification":
        raise ValueError("label_balance balances labels: expected task.kind: classification")
    labels = context.task.labels
    return Filter(
        list_outputs,
        partial(
            balance, labels=labels, ratio=ratio, max_per_label=max_per_label, seed=context.seed
        ),
    )


def list_outputs(state: None, rows: list[Row]) -> list[str | None]:
    return [row["output"] for row in rows]


def balance(
    outputs: Iterable[Any],
    *,
    labels: list[str],
    ratio: float | None,
    max_per_label: int | None,
    seed: int,
) -> Iterator[str | None]:
    number = {label: index for index, label in enumerate(labels)}
    numbered = array("H")  # 0 for none
    for output in outputs:
        numbered.append(0 if output is None else 1 + number[output])
    counts = {label: numbered.count(1 + index) for label, index in number.items()}
    limits = [max_per_label] if max_per_label else []
    if ratio is not None:
        if missing := [label for label, count in counts.items() if not count]:
            raise CorpusError(
                f"label_balance: no row has the label {missing[0]!r}, got {counts}",
                "add a source or labeller that gives it, or set ratio: null with max_per_label",
            )
        limits.append(int(ratio * min(counts.values())))
    if not limits:
        yield from (None for _ in numbered)
        return
    limit = min(limits)
    rng = random.Random(seed)
    chosen = [set(rng.sample(range(n), min(limit, n))) for n in counts.values()]
    met = [0] * len(labels)
    for which in numbered:
        if not which:
            yield None
            continue
        label = which - 1
        stays = met[label] in chosen[label]
        met[label] += 1
        yield None if stays else f"label balance: more than {limit} rows are {labels[label]}"
