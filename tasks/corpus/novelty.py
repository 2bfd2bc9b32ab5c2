"""How much of a text was said before, by ROUGE-L."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from rapidfuzz import process
from rapidfuzz.distance import Indel

from tasks.corpus.words import split_words


def rouge_l(a: str, b: str) -> float:
    """Return the F-measure of two texts' longest common subsequence of words, from 0 to 1.

    2 LCS(a, b) / (|a| + |b|), which is one less the normalised number of insertions and deletions.

    Reference: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", equation 4
    with beta = 1.
    """
    return Indel.normalized_similarity(split_words(a), split_words(b))


class NoveltyPool:
    """Texts that differ: none has a ROUGE-L of `max_similarity` or more with one that came before.

    A text is compared with those alone that share a word of its prefix: two texts of m and n words
    reach a similarity t only if they share t (m + n) / 2 words, so at least t m / (2 - t) of m; in
    any one order of words, such texts share one of the first m - t m / (2 - t) + 1. Longest words
    come first, which are mostly rare. Nothing is missed; what it costs is still quadratic, in
    texts that share rare words.

    Reference: Wang et al. 2022, Self-Instruct, arXiv 2212.10560, section 2.2 (0.7, and below it
    a new instruction is kept); prefixes after Bayardo, Ma and Srikant 2007, "Scaling up all pairs
    similarity search".
    """

    def __init__(self, texts: Iterable[str], max_similarity: float) -> None:
        self.max_similarity = max_similarity
        self.seen: list[list[str]] = []
        self.places: dict[tuple[str, int], list[int]] = defaultdict(list)
        """Which seen texts have a word in their prefix, by the word and its number in them."""
        for text in texts:
            words = split_words(text)
            self._add(words, self._prefix(words))

    def admit(self, text: str) -> bool:
        """Take a text in and return True, or return False where it is too much like another."""
        words = split_words(text)
        prefix = self._prefix(words)
        near = sorted({place for key in prefix for place in self.places.get(key, ())})
        found = process.extractOne(
            words,
            [self.seen[place] for place in near],
            scorer=Indel.normalized_similarity,
            processor=None,
            score_cutoff=self.max_similarity,
        )
        if found is not None:
            return False
        self._add(words, prefix)
        return True

    def _prefix(self, words: list[str]) -> list[tuple[str, int]]:
        met: Counter[str] = Counter()
        numbered: list[tuple[str, int]] = []
        for word in words:
            numbered.append((word, met[word]))
            met[word] += 1
        numbered.sort(key=lambda key: (-len(key[0]), key))
        # Less a little, so that rounding asks for no word too many.
        shared = math.ceil(self.max_similarity * len(words) / (2 - self.max_similarity) - 1e-9)
        return numbered[: len(words) - shared + 1] or [("", 0)]  # texts without words are alike

    def _add(self, words: list[str], prefix: list[tuple[str, int]]) -> None:
        for key in prefix:
            self.places[key].append(len(self.seen))
        self.seen.append(words)
