"""Pack documents of any length into training blocks of one length."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from tasks.corpus.arrays import Arrays
from tasks.corpus.text import Document
from tasks.errors import CorpusError

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]
Bits = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Tokens(NamedTuple):
    """Documents joined end to end."""

    ids: Ids
    """[num_tokens]"""
    loss_mask: Bits
    """[num_tokens], 1 where the token is to be learned."""

    def encode(self) -> bytes:
        return self.ids.tobytes() + self.loss_mask.tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Tokens:
        size = len(data) // 5
        return cls(
            np.frombuffer(data, np.int32, size), np.frombuffer(data, np.uint8, size, 4 * size)
        )


def join_documents(documents: Iterable[Document]) -> Tokens:
    ids, loss_mask = array("i"), bytearray()  # 5 bytes a token; lists take 40
    for document in documents:
        ids.extend(document.ids)
        loss_mask.extend(document.loss_mask)
    return Tokens(np.array(ids, np.int32), np.frombuffer(loss_mask, np.uint8))


def cut_blocks(parts: Iterable[Tokens], block_tokens: int) -> Iterator[Arrays]:
    """Join parts, and yield whole blocks as soon as there are any: `ids` int32 and `loss_mask`
    uint8, both [num_blocks, block_tokens]. What does not fill the last block is left out.

    Raises:
        CorpusError: all parts together are shorter than one block.
    """
    rest = join_documents([])
    num_tokens = 0
    for part in parts:
        num_tokens += len(part.ids)
        ids = np.concatenate([rest.ids, part.ids])
        mask = np.concatenate([rest.loss_mask, part.loss_mask])
        kept = len(ids) // block_tokens * block_tokens
        if kept:
            shape = (-1, block_tokens)
            yield {"ids": ids[:kept].reshape(shape), "loss_mask": mask[:kept].reshape(shape)}
        rest = Tokens(ids[kept:], mask[kept:])
    if num_tokens < block_tokens:
        raise CorpusError(
            f"the corpus has {num_tokens} tokens, fewer than one block of {block_tokens}",
            "add a source, or lower corpus.block_tokens",
        )
