"""The teacher of a training that reads its distributions instead of running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.chunked_kd.naive import StoredTeacher
from tasks.distill.examples import Examples
from tasks.distill.teacher_logits.reader import StoredLogits
from tasks.distill.teaching import Lesson


@contextmanager
def show_stored(logits: StoredLogits, rows_B: torch.Tensor, examples: Examples) -> Iterator[Lesson]:
    """Show what is stored of some blocks, on their device."""
    stored = logits.read(rows_B)
    yield Lesson(logits=StoredTeacher(*(part.to(examples.labels.device) for part in stored)))
