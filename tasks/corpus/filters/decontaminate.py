"""Drop a row that holds a part of the very text that the gate evaluates on.

An item of the evaluation text is found by any run of `ngram_words` words in it, without regard to
case and punctuation. A text of fewer words, but at least 8, counts where it is found whole in a
row; an item shorter than that only where it is all that a row says, since runs of a few words
occur anywhere.

Reference: Brown et al. 2020, arXiv 2005.14165, appendix C: runs of 8 to 13 words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row, make_row, read_rows
from tasks.corpus.words import (
    Hashes,
    all_texts,
    hash_bytes,
    hash_ngrams,
    hash_words,
    input_texts,
    split_words,
)

USES = ("evaluation",)

MIN_WORDS = 8
REASON = "contaminated: in the evaluation text"


class Items(NamedTuple):
    """The evaluation text; a worker's state."""

    ngrams: dict[int, Hashes]
    """Sorted hashes, by the number of words in a run."""
    whole: set[int]
    """Hashes of what the short items say."""


def keep(context: CorpusContext, *, ngram_words: Annotated[int, Field(ge=8)] = 13) -> Filter:
    """Compare each row with all items, by hashes of 64 bits: 8 bytes a word of evaluation text."""
    assert context.evaluation_uri is not None
    state = partial(load_items, context.space.localizer, context.evaluation_uri, ngram_words)
    return Filter(find_contaminated, iter, state)


def load_items(localize: Callable[[str], Path], uri: str, ngram_words: int) -> Items:
    found: dict[int, list[Hashes]] = defaultdict(list)
    whole: set[int] = set()
    for raw in read_rows(localize(uri)):
        row = make_row(raw, "evaluation", None)
        texts = [hash_words(split_words(text)) for text in all_texts(row)]
        long = [words for words in texts if len(words) >= MIN_WORDS]
        for words in long:
            length = min(ngram_words, len(words))
            found[length].append(hash_ngrams(words, length))
        if not long:
            whole.add(hash_whole(input_texts(row)))
    whole.discard(hash_whole([]))
    return Items({n: np.unique(np.concatenate(h)) for n, h in found.items()}, whole)


def find_contaminated(items: Items, rows: list[Row]) -> list[str | None]:
    return [REASON if is_contaminated(items, row) else None for row in rows]


def is_contaminated(items: Items, row: Row) -> bool:
    says = [input_texts(row), [row["output"] or ""]]
    if items.whole and any(hash_whole(texts) in items.whole for texts in says):
        return True
    texts = [hash_words(split_words(text)) for text in all_texts(row)]
    return any(
        contains_any(ngrams, hash_ngrams(words, length))
        for words in texts
        for length, ngrams in items.ngrams.items()
    )


def contains_any(ngrams: Hashes, wanted: Hashes) -> bool:
    """Tell whether one of the wanted is among the sorted n-grams."""
    places = np.searchsorted(ngrams, wanted)
    return bool((ngrams[np.minimum(places, len(ngrams) - 1)] == wanted).any())


def hash_whole(texts: list[str]) -> int:
    return hash_bytes(" ".join(split_words("\n".join(texts))).encode())
