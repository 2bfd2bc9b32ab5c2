"""What a source of text may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.records import ModelRef

if TYPE_CHECKING:
    from tasks.stage import StageSpace


@dataclass(frozen=True)
class SourceContext:
    space: StageSpace
    teacher: ModelRef
    trust_remote_code: bool
    seed: int
    """Differs between the sources of one recipe."""
    name: str
    """Names the source's units of work within the stage."""

    def local(self, uri: str) -> Path:
        return self.space.local(uri)
