"""Drop a row that is nearly the same as one kept before it, found by MinHash.

    J(a, b) = |A n B| / |A u B|, over the sets of word n-grams of two rows

Workers sign rows: the least of their n-grams' hashes under each of `permutations` permutations.
Rows that agree in a whole band of the signature are compared, and the later one is dropped when
the signatures put their similarity at the threshold or above; a shared band alone drops nothing.

Reference: Broder 1997, "On the resemblance and containment of documents"; bands as in Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4; 5-grams and 0.8 as Lee et al.
2021, arXiv 2107.06499; the low byte of each value, of which two agree by chance once in 256, after
Li and König 2009, arXiv 0910.3349.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Any

import numpy as np
from datasketch import MinHash
from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row
from tasks.corpus.words import all_texts, hash_ngrams, hash_words, split_words

USES = ()

MIN_RECALL = 0.95
"""Probability with which two rows at the threshold share a band."""
BAND_BYTES = 8
SIGNED_AT_ONCE = 4096
"""N-grams times permutations is what signing holds in memory."""

Bytes = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


def keep(
    context: CorpusContext,
    *,
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.8,
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128,
    ngram_words: Annotated[int, Field(gt=0)] = 5,
) -> Filter:
    """Compare rows by their signatures; a row shorter than an n-gram is one n-gram.

    The estimate's standard error is sqrt(J (1 - J) / permutations): 0.035 at the defaults. In the
    judge's memory are about 400 bytes a row at the defaults, whatever the rows' lengths.
    """
    band_size = choose_band_size(threshold, permutations)
    return Filter(
        partial(sign, ngram_words=ngram_words, band_size=band_size),
        partial(find_near, threshold=threshold, permutations=permutations),
        partial(MinHash, permutations, hashfunc=int, scheme="affine32"),
    )


def choose_band_size(threshold: float, permutations: int) -> int:
    """Return the largest size of which a pair at the threshold shares a band, MIN_RECALL.

    P(share) = 1 - (1 - threshold^size)^(permutations // size)
    """

    def recall(size: int) -> float:
        return float(1 - (1 - threshold**size) ** (permutations // size))

    return max((s for s in range(1, permutations + 1) if recall(s) >= MIN_RECALL), default=1)


def sign(
    empty: MinHash, rows: list[Row], *, ngram_words: int, band_size: int
) -> list[bytes | None]:
    """Return for each row the low bytes of its signature and its bands' digests.

    None for a row without words.
    """
    return [
        sign_words(empty, words, ngram_words, band_size) if words else None
        for words in (split_words("\n".join(all_texts(row))) for row in rows)
    ]


def sign_words(empty: MinHash, words: list[str], ngram_words: int, band_size: int) -> bytes:
    hashes = hash_ngrams(hash_words(words), min(ngram_words, len(words)))
    ngrams = np.unique(hashes.astype(np.uint32)).tolist()
    signed = empty.copy()
    for start in range(0, len(ngrams), SIGNED_AT_ONCE):
        signed.update_batch(ngrams[start : start + SIGNED_AT_ONCE])
    values = signed.hashvalues.astype("<u4")
    last = len(values) - band_size
    bands = (values[s : s + band_size].tobytes() for s in range(0, last + 1, band_size))
    digests = [hashlib.blake2b(band, digest_size=BAND_BYTES).digest() for band in bands]
    low: bytes = values.astype(np.uint8).tobytes()
    return low + b"".join(digests)


def find_near(
    measured: Iterable[Any], *, threshold: float, permutations: int
) -> Iterator[str | None]:
    has_words: list[bool] = []
    data = bytearray()
    for value in measured:
        has_words.append(value is not None)
        data += value or b""
    if not data:
        yield from (None for _ in has_words)
        return
    table = np.frombuffer(data, np.uint8).reshape(sum(has_words), -1)
    near = iter(find_near_signed(table[:, :permutations], table[:, permutations:], threshold))
    for has in has_words:
        yield "near duplicate" if has and next(near) else None


def find_near_signed(values: Bytes, digests: Bytes, threshold: float) -> Iterator[bool]:
    """Yield for each row whether one kept before it is similar.

    Args:
        values: [num_rows, permutations]
        digests: [num_rows, num_bands * BAND_BYTES]
    """
    buckets = number_shared(np.ascontiguousarray(digests).view(np.uint64))
    kept: dict[int, list[int]] = defaultdict(list)
    for row, shared in enumerate(buckets):
        mine = [int(bucket) for bucket in shared if bucket >= 0]
        others = sorted({other for bucket in mine for other in kept[bucket]})
        is_near = bool(others) and estimate(values[row], values[others]).max() >= threshold
        if not is_near:
            for bucket in mine:
                kept[bucket].append(row)
        yield is_near


def number_shared(digests: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, Any]:
    """Return a number for each digest that other rows have in the same band, else -1.

    Both are [num_rows, num_bands].
    """
    buckets = np.full(digests.shape, -1, np.int64)
    first = 0
    for band, column in enumerate(digests.T):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        buckets[shared, band] = first + inverse[shared]
        first += len(counts)
    return buckets


def estimate(values: Any, others: Bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the similarity of one signature's low bytes to each of others, [num_others]."""
    chance = 1 / 256
    agreeing: np.ndarray[Any, np.dtype[np.float64]] = (others == values).mean(axis=1)
    return (agreeing - chance) / (1 - chance)
