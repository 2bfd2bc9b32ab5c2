"""What a recipe may say of its task and of the text that a student learns from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.recipe_parts import Config, Count, Plugin

DATA_SET = "corpus"
"""What a published corpus is called where exports have their names."""


class Example(Config):
    """One solved case of the task."""

    text: str
    text_pair: str | None = None
    """The second text, where the task is about two."""
    output: str
    """What answers it: one of the labels, or text."""


class Task(Config):
    """What the student is for; sources, labels and filters may start from it."""

    instruction: Annotated[str, Field(min_length=1)]
    kind: Literal["generation", "classification"] = "generation"
    examples: list[Example] = Field(default_factory=list)
    labels: list[str] = Field(default_factory=list)
    """Of a classification, in the order in which rows may number them."""

    @model_validator(mode="after")
    def check_labels(self) -> Self:
        if self.kind == "generation":
            if self.labels:
                raise ValueError("labels are for kind: classification, got them with generation")
            return self
        if len(set(self.labels)) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"expected two different labels or more, got {self.labels}")
        if strange := {e.output for e in self.examples} - set(self.labels):
            raise ValueError(
                f"examples have outputs {sorted(strange)} outside the labels {self.labels}"
            )
        return self


class CorpusOptions(Config):
    sources: Annotated[list[Plugin], Field(min_length=1)]
    generator: Plugin = Plugin(name="teacher")
    """Who writes for the sources that generate text."""
    labels: list[Plugin] = Field(default_factory=list)
    """Who labels rows that have no output yet, one after the other."""
    filters: list[Plugin] = Field([Plugin(name="exact_dedup")])
    """Applied in this order; a filter keeps a row or drops it with a reason."""
    block_tokens: Count = 256
    """Tokens in a packed training block."""
    publish: bool = False
    """Whether the rows are published as a data set, named `corpus` among the exports."""
