"""What every rank of a training group is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.storage import Store
    from tasks.distill.teacher_logits.shard import Origin


@dataclass(frozen=True)
class TrainingJob:
    """It travels to the workers by pickle."""

    store: Store
    prefix: str
    """The stage's folder in the store."""
    localize: Callable[[str], Path]
    """Turns a URI into a local path, on the worker's own machine."""
    options: dict[str, Any]
    """The stage's options."""
    teacher_uri: str | None
    """None where no loss looks at the teacher."""
    student_uri: str
    corpus_uri: str
    vocab_size: int | None
    """Logits to keep of both models, where one of them pads its vocabulary; None keeps all."""
    num_steps: int
    teacher_logits_uri: str | None = None
    """Where the stored teacher logits lie; no rank then loads the teacher."""
    teacher_logits_origin: Origin | None = None
    """What they must have been made of."""
    prepare: Callable[[Any], None] | None = None
    """Called with the student before it is put under DeepSpeed."""
