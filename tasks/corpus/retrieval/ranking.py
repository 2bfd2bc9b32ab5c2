"""Rank texts by BM25: which of them say much, for their length, of a query's rare words."""

from __future__ import annotations

import logging
from array import array
from functools import lru_cache

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized

from tasks.corpus.retrieval.languages import STOP_WORDS, detect_language
from tasks.corpus.words import split_words

ASKING = frozenset(
    "decide determine say tell given following task input output whether please".split()
)
"""Words of asking, which say nothing of a task's subject."""

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

Scores = np.ndarray[tuple[int], np.dtype[np.float32]]


@lru_cache(maxsize=2**16)
def stem(word: str) -> str:
    """Return what an English word and its plural have in common.

    Reference: Harman 1991, "How effective is suffixing?", table 1 (the S stemmer); there `movies`
    is not `movie`, so that here -ie becomes -y, too.
    """
    if len(word) < 4:
        return word
    if word.endswith(("ies", "ie")):
        return word.removesuffix("s")[:-2] + "y"
    if not word.endswith("s") or word[-2] in "us":
        return word
    return word[:-1]


def query_words(text: str) -> dict[str, str]:
    """Return the different words that say what a text is about, by their stems."""
    found = split_words(text)
    common = STOP_WORDS.get(detect_language(found), frozenset()) | STOP_WORDS["en"] | ASKING
    kept = [w for w in found if w not in common and (len(w) > 1 or not w.isascii())]
    return {stem(word): word for word in kept}


class Ranking:
    """Texts, and how well each fits a query.

    Of a text only its length and the query's words in it count, so that is all that is held: two
    bytes a word.

    Reference: Robertson and Zaragoza 2009, "The probabilistic relevance framework: BM25 and
    beyond"; k1 = 1.5 and b = 0.75 in Lucene's variant, computed by bm25s (Lù 2024,
    arXiv:2407.03618).
    """

    def __init__(self, query: str) -> None:
        found = query_words(query)
        self.words = list(found.values())
        """That are looked for."""
        self._ids = {stemmed: number for number, stemmed in enumerate(found)}
        self._texts: list[array[int]] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, found: list[str]) -> None:
        """Add a text, as its words."""
        other = len(self._ids)
        self._texts.append(array("H", [self._ids.get(stem(word), other) for word in found]))

    def scores(self) -> Scores:
        """Return each text's score, 0 where it has none of the query's words."""
        if not self._texts or not self.words or not any(self._texts):
            return np.zeros(len(self._texts), dtype=np.float32)
        index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        vocabulary = {**self._ids, "": len(self._ids)}
        index.index(Tokenized(self._texts, vocabulary), show_progress=False)
        scores: Scores = index.get_scores_from_ids(list(self._ids.values()))
        return scores
