"""What a recipe may say of how models are judged."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from tasks.recipe_parts import Config, Count


class Evaluation(Config):
    text: str
    """Held-out JSONL that decides the gate."""
    window: Count = 256
    """Tokens that the model sees at once."""
    stride: Count | None = None
    """Tokens scored per window; as many as the window holds when left out."""

    @model_validator(mode="after")
    def check_stride(self) -> Self:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride must be at most the window ({self.window})")
        return self
