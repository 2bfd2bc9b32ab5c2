"""What the plugins of the corpus may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.corpus_options import Task
from tasks.models.model_kind import HeadKind
from tasks.records import ModelRef

if TYPE_CHECKING:
    from tasks.corpus.generation import Generator
    from tasks.stage_space import StageSpace


@dataclass
class CorpusContext:
    space: StageSpace
    seed: int
    """Differs between the plugins of one recipe."""
    name: str
    """Names the plugin's units of work within the stage."""
    task: Task | None = None
    head: HeadKind = "causal_lm"
    """Of the teacher, which decides what a row's output is."""
    teacher: ModelRef | None = None
    """None for a plugin that does not say it uses it."""
    trust_remote_code: bool = False
    generator: Generator | None = None
    """None for a plugin that does not say it uses it."""
    evaluation_uri: str | None = None
    """The text that decides the gate; None for a plugin that does not say it uses it."""
    refused: Counter[str] = field(default_factory=Counter)
    """Rows that could not be used, by reason; plugins count here what they leave out."""
    spent: Counter[str] = field(default_factory=Counter)
    """requests, prompt_tokens, completion_tokens."""

    def local(self, uri: str) -> Path:
        return self.space.local(uri)


def add_up(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
