"""The teacher of a training that reads its distributions instead of running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.chunked_kd.naive import StoredTeacher
from tasks.distill.teacher_logits.reader import StoredLogits
from tasks.distill.teaching import Lesson


@contextmanager
def show_stored(
    logits: StoredLogits, rows_B: torch.Tensor, ids_BT: torch.Tensor
) -> Iterator[Lesson]:
    """Show what is stored of some blocks, on the device of their ids."""
    stored = logits.read(rows_B)
    yield Lesson(logits=StoredTeacher(*(part.to(ids_BT.device) for part in stored)))
