"""Blocks for a masked language model: some tokens are hidden, and are what is to be found.

Reference: Devlin et al. 2019, arXiv 1810.04805, section 3.1 (15%, of which 80% become the mask, 10%
another token, and 10% stay).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.corpus.arrays import Arrays
from tasks.corpus.examples import IGNORED
from tasks.errors import CorpusError

CHOSEN = 0.15
"""Of the tokens that are not special."""
MASKED, REPLACED = 0.8, 0.1
"""Of those chosen."""


class Vocabulary(NamedTuple):
    mask_id: int
    special_ids: NDArray[np.int32]
    """Never chosen."""
    size: int


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Raises: CorpusError: the tokenizer has no mask."""
    if tokenizer.mask_token_id is None:
        raise CorpusError(
            "the teacher's tokenizer has no mask token", "set its mask_token, and save it again"
        )
    special = np.array(sorted(tokenizer.all_special_ids), np.int32)
    return Vocabulary(tokenizer.mask_token_id, special, len(tokenizer))


def mask_blocks(parts: Iterable[Arrays], vocabulary: Vocabulary, seed: int) -> Iterator[Arrays]:
    """Yield `ids` int32 with some of them hidden, `labels` int32, which is what they were, -100
    where nothing was, and `attention_mask` uint8, all [num_blocks, block_tokens].

    What is hidden in a block is fixed by the seed and the block's number in the corpus.
    """
    number = 0
    for part in parts:
        whole = part["ids"]
        hidden, labels = whole.copy(), np.full_like(whole, IGNORED)
        for ids, shown, label in zip(whole, hidden, labels, strict=True):
            rng = np.random.default_rng([seed, number])
            chosen = (rng.random(len(ids)) < CHOSEN) & ~np.isin(ids, vocabulary.special_ids)
            fate, others = rng.random(len(ids)), rng.integers(vocabulary.size, size=len(ids))
            replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
            label[chosen] = ids[chosen]
            shown[chosen & (fate < MASKED)] = vocabulary.mask_id
            shown[replaced] = others[replaced]
            number += 1
        yield {"ids": hidden, "labels": labels, "attention_mask": np.ones_like(whole, np.uint8)}
