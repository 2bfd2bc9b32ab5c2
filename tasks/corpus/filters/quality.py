"""Drop a row whose characters look like no prose: menus, markup, boilerplate, loops.

Reference: Rae et al. 2021 (Gopher), arXiv 2112.11446, appendix A.1.1, the quality rules and the
repetition limits of table A1; Raffel et al. 2019 (C4), arXiv 1910.10683, section 2.2, for
"lorem ipsum" and curly brackets. The limits were chosen on English web pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row
from tasks.corpus.words import all_texts, hash_ngrams, hash_words

USES = ()

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("\u2022", "\u2023", "\u25e6", "-", "*")
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
"""Of all characters, those of the n-gram that makes up most of them."""
MAX_REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Of all characters, those of n-grams that occurred before."""


class Limits(NamedTuple):
    min_words: int
    max_words: int
    min_stop_words: int
    code: bool


def keep(
    context: CorpusContext,
    *,
    min_words: Annotated[int, Field(ge=0)] = 50,
    max_words: Annotated[int, Field(gt=0)] = 100_000,
    min_stop_words: Annotated[int, Field(ge=0)] = 2,
    code: bool = False,
) -> Filter:
    """Keep rows that pass every rule; a row that does not is counted under the first it breaks.

    Args:
        min_words: Lower it for a task of single sentences.
        min_stop_words: Different words of the eight commonest English ones; 0 for other languages.
        code: Whether curly brackets are welcome.
    """
    limits = Limits(min_words, max_words, min_stop_words, code)
    return Filter(partial(find_faults, limits=limits), iter)


def find_faults(state: None, rows: list[Row], *, limits: Limits) -> list[str | None]:
    first = (next(faults("\n".join(all_texts(row)), limits), None) for row in rows)
    return [fault and f"quality: {fault}" for fault in first]


def faults(text: str, limits: Limits) -> Iterator[str]:
    """Yield the rules that a text breaks, the cheapest to check first."""
    words = text.split()
    if len(words) < limits.min_words:
        yield f"fewer than {limits.min_words} words"
    if not words:
        return
    if len(words) > limits.max_words:
        yield f"more than {limits.max_words} words"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
        yield "mean word length outside 3 to 10"
    if text.count("#") > 0.1 * len(words):
        yield "more than 0.1 hash signs a word"
    if text.count("...") + text.count("\u2026") > 0.1 * len(words):
        yield "more than 0.1 ellipses a word"
    if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * len(words):
        yield "fewer than 80% of words with a letter"
    if len(STOP_WORDS & {word.lower() for word in words}) < limits.min_stop_words:
        yield f"fewer than {limits.min_stop_words} stop words"
    if "lorem ipsum" in text.lower():
        yield "lorem ipsum"
    if not limits.code and ("{" in text or "}" in text):
        yield "curly brackets"
    yield from line_faults(text)
    yield from repetition_faults(words)


def line_faults(text: str) -> Iterator[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if sum(line.startswith(BULLETS) for line in lines) > 0.9 * len(lines):
        yield "more than 90% of lines begin with a bullet"
    if sum(line.endswith(("...", "\u2026")) for line in lines) > 0.3 * len(lines):
        yield "more than 30% of lines end with an ellipsis"
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    for name, parts in (("lines", lines), ("paragraphs", paragraphs)):
        repeated = repetitions(parts)
        if len(repeated) > 0.3 * len(parts):
            yield f"more than 30% of {name} repeated"
        if sum(map(len, repeated)) > 0.2 * sum(map(len, parts)):
            yield f"more than 20% of characters in repeated {name}"


def repetitions(parts: list[str]) -> list[str]:
    """Return the parts that are there a second time or more often, each time after the first."""
    return [part for part, count in Counter(parts).items() for _ in range(count - 1)]


def repetition_faults(words: list[str]) -> Iterator[str]:
    hashes = hash_words(words)
    sizes = np.array([len(word) for word in words])
    before = np.concatenate([[0], sizes.cumsum()])
    for length, most in (MAX_TOP_NGRAM | MAX_REPEATED_NGRAMS).items():
        ngrams = hash_ngrams(hashes, length)
        _, first, inverse, counts = np.unique(
            ngrams, return_index=True, return_inverse=True, return_counts=True
        )
        if not (counts > 1).any():
            return  # then no longer one is repeated either
        if length in MAX_TOP_NGRAM:
            characters = before[first + length] - before[first]
            share = (characters * counts)[counts > 1].max() / before[-1]
            if share > most:
                yield f"more than {most:.0%} of characters in one {length}-gram"
        else:
            starts = np.flatnonzero(first[inverse] != np.arange(len(ngrams)))
            covered = np.zeros(len(words) + 1, np.int64)
            covered[starts] += 1
            covered[starts + length] -= 1  # starts differ, so no index is met twice
            if sizes[covered.cumsum()[:-1] > 0].sum() / before[-1] > most:
                yield f"more than {most:.0%} of characters in repeated {length}-grams"
