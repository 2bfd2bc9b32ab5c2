"""Pack documents of any length into training blocks of one length."""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

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


def write_blocks(parts: Iterable[Tokens], block_tokens: int, path: Path) -> int:
    """Join parts, cut them into blocks, and write them; what does not fill the last is left out.

    The file is safetensors with `ids` int32 and `loss_mask` uint8, both [num_blocks,
    block_tokens]. It is written as the parts come: one of them is in memory at a time.

    Returns:
        num_blocks.

    Raises:
        CorpusError: all parts together are shorter than one block.
    """
    ids_path, mask_path = path.with_suffix(".ids"), path.with_suffix(".mask")
    num_tokens = 0
    with ids_path.open("wb") as ids, mask_path.open("wb") as mask:
        for part in parts:
            ids.write(part.ids.tobytes())
            mask.write(part.loss_mask.tobytes())
            num_tokens += len(part.ids)
        num_blocks = num_tokens // block_tokens
        if num_blocks == 0:
            raise CorpusError(
                f"the corpus has {num_tokens} tokens, fewer than one block of {block_tokens}",
                "add a source, or lower corpus.block_tokens",
            )
        kept = num_blocks * block_tokens
        ids.truncate(4 * kept)
        mask.truncate(kept)
    with path.open("wb") as out:
        out.write(safetensors_header(num_blocks, block_tokens))
        for piece in (ids_path, mask_path):
            with piece.open("rb") as data:
                shutil.copyfileobj(data, out, 1 << 20)
            piece.unlink()
    return num_blocks


def safetensors_header(num_blocks: int, block_tokens: int) -> bytes:
    """Return what begins the file: the size of a JSON header, and the header, padded to 8 bytes.

    Reference: the format's own description, github.com/huggingface/safetensors, "Format".
    """
    shape, kept = [num_blocks, block_tokens], num_blocks * block_tokens
    header = {
        "ids": {"dtype": "I32", "shape": shape, "data_offsets": [0, 4 * kept]},
        "loss_mask": {"dtype": "U8", "shape": shape, "data_offsets": [4 * kept, 5 * kept]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
