"""Stored teacher logits in training: any blocks of the corpus, in any order, without the teacher.

Shapes: B blocks of T tokens, N = B T positions, K the most entries of a position.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from kernels.chunked_kd.naive import StoredTeacher
from tasks.distill.teacher_logits.encoding import TAIL_STEPS, Encoding, Entries
from tasks.distill.teacher_logits.shard import Origin, Shard, shard_name
from tasks.errors import CheckpointError

OPEN_SHARDS = 256
"""Shards that stay mapped; blocks come in random order."""


class StoredLogits:
    """The shards of one folder, opened when they are first read."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self._folder = folder
        self._origin = origin
        self._open = lru_cache(OPEN_SHARDS)(self._open_shard)
        self.header = self._open(0).header

    def read(self, rows_B: torch.Tensor) -> StoredTeacher:
        """Return the teacher at all positions of the given blocks, in their order, on the CPU.

        Position t predicts token t + 1. Where nothing is learned, as at the end of a block, stands
        one token that means nothing.

        Returns:
            ids int64 [N, K], log_probs float32 [N, K] and log_tail float32 [N], in nats.

        Raises:
            CheckpointError: a shard is damaged, or made of something else than the first.
        """
        blocks = [self._read_block(row) for row in rows_B.tolist()]
        entries = Entries(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
        return to_stored_teacher(entries, self.header.encoding)

    def _read_block(self, row: int) -> Entries:
        assert 0 <= row < self.header.num_blocks, row
        number, block = divmod(row, self.header.shard_blocks)
        return self._open(number).read(block)

    def _open_shard(self, number: int) -> Shard:
        path = self._folder / shard_name(number)
        shard = Shard(path)
        for what, expected in self._origin._asdict().items():
            got = getattr(shard.header.origin, what)
            if got != expected:
                raise CheckpointError(
                    f"{path}: the stored teacher logits are of another {what}: expected "
                    f"{expected}, got {got}",
                    "store them again for this one, or train with teacher: online",
                )
        return shard


def open_teacher_logits(folder: Path, origin: Origin) -> StoredLogits:
    """Open a stage's output; every shard that is read is held against what training expects.

    Raises:
        CheckpointError: there are none, or they are of another teacher, tokenizer or corpus, or of
            another version.
    """
    return StoredLogits(folder, origin)


def to_stored_teacher(entries: Entries, encoding: Encoding) -> StoredTeacher:
    """Return ids int64 [N, K], log-probabilities float32 [N, K] and tails float32 [N].

    A position that is not learned holds one token that stands for nothing.
    """
    num_positions = len(entries.counts)
    filled_NK = np.arange(encoding.max_entries) < entries.counts[:, None]
    ids_NK = np.full((num_positions, encoding.max_entries), -1)
    deltas_NK = np.full((num_positions, encoding.max_entries), np.inf, dtype=np.float32)
    ids_NK[filled_NK] = entries.ids
    deltas_NK[filled_NK] = entries.deltas * encoding.delta_step
    ids_NK[entries.counts == 0, 0] = 0
    deltas_NK[entries.counts == 0, 0] = 0.0
    tails_N = torch.from_numpy(entries.tails.astype(np.float32)) / TAIL_STEPS
    log_probs_NK = torch.log_softmax(torch.from_numpy(-deltas_NK), dim=1)
    return StoredTeacher(
        ids=torch.from_numpy(ids_NK),
        log_probs=log_probs_NK + torch.log1p(-tails_N)[:, None],
        log_tail=tails_N.log(),
    )
