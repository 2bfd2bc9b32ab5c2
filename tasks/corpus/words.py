"""What rows say, as words and n-grams of words, numbered alike on every machine."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np

from tasks.corpus.rows import Row

Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Kana and Han, which are written without spaces: each character counts as a word."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def input_texts(row: Row) -> list[str]:
    """Return what a row says before its output: its texts, or what a chat's messages say."""
    if row["chat"]:
        return [str(message.get("content") or "") for message in json.loads(row["text"])]
    return [row["text"], *([] if row["text_pair"] is None else [row["text_pair"]])]


def all_texts(row: Row) -> list[str]:
    return [*input_texts(row), *([] if row["output"] is None else [row["output"]])]


def split_words(text: str) -> list[str]:
    """Return the words in lower case; punctuation belongs to none."""
    return WORD.findall(text.lower())


def hash_words(words: list[str]) -> Hashes:
    """Return a 64-bit hash of each word, [num_words]."""
    hashes = {word: hash_bytes(word.encode()) for word in set(words)}
    return np.array([hashes[word] for word in words], np.uint64)


def hash_ngrams(words: Hashes, length: int) -> Hashes:
    """Return a 64-bit hash of every run of `length` words, [max(0, num_words - length + 1)].

    h = mix(sum_j m_j w_j mod 2^64), with fixed odd m_j: that any two different runs of the 10^9 in
    a corpus are equal has a probability of about 0.03.

    Args:
        words: Their hashes.
    """
    runs = np.zeros(max(0, len(words) - length + 1), np.uint64)
    for offset in range(length if len(runs) else 0):
        multiplier = np.uint64(hash_bytes(offset.to_bytes(8, "little")) | 1)
        runs += multiplier * words[offset : offset + len(runs)]
    # Splitmix64's finalizer: every bit of the sum reaches every bit of the hash.
    runs = (runs ^ (runs >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    runs = (runs ^ (runs >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return runs ^ (runs >> np.uint64(31))


def hash_bytes(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
