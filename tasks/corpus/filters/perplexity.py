"""Drop a row that the teacher finds too easy or too surprising.

Text that a language model of good text finds very surprising is mostly noise; text that it finds
hardly surprising at all is mostly repetition.

Reference: Wenzek et al. 2019 (CCNet), arXiv 1911.00359, section 3.4, with the teacher as the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row
from tasks.corpus.scoring import Scorer, scorer_state, token_nats
from tasks.corpus.text import tokenize_row
from tasks.corpus.words import all_texts

USES = ()


def keep(
    context: CorpusContext,
    *,
    min_nats: float | None = None,
    max_nats: float | None = None,
    window: Annotated[int, Field(gt=1)] = 256,
) -> Filter:
    """Keep rows of which the teacher's mean loss lies from `min_nats` to `max_nats` per token.

    Scored is all that a row says, as one document, in its first `window` tokens. Each row is
    scored by itself, so that its neighbours do not decide a last digit.

    Raises:
        ValueError: neither limit is given, or they leave nothing between them.
    """
    if min_nats is None and max_nats is None:
        raise ValueError("perplexity: expected min_nats, max_nats or both, got neither")
    if min_nats is not None and max_nats is not None and min_nats >= max_nats:
        raise ValueError(f"perplexity: expected min_nats < max_nats, got {min_nats}, {max_nats}")
    return Filter(
        partial(measure_nats, window=window),
        partial(judge, min_nats=min_nats, max_nats=max_nats),
        scorer_state(context),
    )


def measure_nats(scorer: Scorer, rows: list[Row], *, window: int) -> list[float | None]:
    """Return nats per token of each row; None where there is no token to predict."""
    return [score("\n".join(all_texts(row)), scorer, window) for row in rows]


def score(text: str, scorer: Scorer, window: int) -> float | None:
    ids = tokenize_row({"text": text}, scorer.tokenizer).ids[:window]
    return float(token_nats(scorer, [ids], 1)[0].mean()) if len(ids) > 1 else None


def judge(
    measured: Iterable[Any], *, min_nats: float | None, max_nats: float | None
) -> Iterator[str | None]:
    for nats in measured:
        if nats is None:
            yield "perplexity: no token to predict"
        elif min_nats is not None and nats < min_nats:
            yield f"perplexity: below {min_nats} nats/token"
        elif max_nats is not None and not nats <= max_nats:
            yield f"perplexity: above {max_nats} nats/token"
        else:
            yield None
