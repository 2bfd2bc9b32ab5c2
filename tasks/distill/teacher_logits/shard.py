"""One file of stored teacher logits: some blocks of the corpus, any of which is read by itself.

safetensors; `__metadata__.teacher_logits` is the header as JSON. Of B blocks of T tokens:
`counts` uint8 and `tails` uint16 [B, T]; `classes` and `fields` uint8, the streams of all blocks
end to end; `class_offsets` and `field_offsets` int64 [B + 1], the bytes where each begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tasks.digests import canonical_json, digest_of
from tasks.distill.teacher_logits.encoding import (
    VERSION,
    Encoding,
    Entries,
    Packed,
    pack,
    unpack,
)
from tasks.errors import CheckpointError
from tasks.records import Record

HEADER = "teacher_logits"


class Origin(NamedTuple):
    """What stored teacher logits are made of, as digests."""

    teacher: str
    tokenizer: str
    """`digest_vocabulary` of the teacher's, and of any student's that learns from them."""
    corpus: str


def digest_vocabulary(tokenizer: Any) -> str:
    """Digest of which id means which token."""
    return digest_of(tokenizer.get_vocab())


class Header(Record):
    """What a shard was made of; the same in all shards of a store."""

    version: Literal[1] = VERSION
    origin: Origin
    encoding: Encoding
    num_blocks: int
    """Of the whole corpus."""
    shard_blocks: int
    """Blocks in a shard; the last may have fewer."""


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.safetensors"


def write_shard(header: Header, blocks: list[Entries]) -> bytes:
    packed = [pack(block, header.encoding) for block in blocks]
    tensors = {
        "counts": np.stack([block.counts for block in blocks]),
        "tails": np.stack([block.tails for block in blocks]),
        "classes": np.concatenate([block.classes for block in packed]),
        "fields": np.concatenate([block.fields for block in packed]),
        "class_offsets": np.cumsum([0, *(len(block.classes) for block in packed)]),
        "field_offsets": np.cumsum([0, *(len(block.fields) for block in packed)]),
    }
    shard: bytes = save(tensors, {HEADER: canonical_json(header.model_dump())})
    return shard


class Shard:
    """A shard mapped into memory; only the blocks that are read come into it.

    Raises:
        CheckpointError: the file is damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, "numpy")
            self.header = Header.model_validate_json((file.metadata() or {}).get(HEADER, "{}"))
            self._class_offsets = file.get_tensor("class_offsets")
            self._field_offsets = file.get_tensor("field_offsets")
        except (OSError, SafetensorError, ValidationError) as error:
            raise CheckpointError(
                f"{path} holds no teacher logits that version {VERSION} reads: {error}",
                "delete the stage's folder in the store: the next run stores them again",
            ) from error
        self._file = file

    def read(self, block: int) -> Entries:
        """Return what is stored of one block, counted from the shard's first."""
        packed = Packed(
            classes=self._bytes("classes", self._class_offsets, block),
            fields=self._bytes("fields", self._field_offsets, block),
        )
        counts, tails = (self._file.get_slice(name)[block] for name in ("counts", "tails"))
        return unpack(packed, counts, tails, self.header.encoding)

    def _bytes(self, name: str, offsets: Any, block: int) -> Any:
        return self._file.get_slice(name)[int(offsets[block]) : int(offsets[block + 1])]
