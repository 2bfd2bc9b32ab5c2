"""What a distill step may say in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.recipe_parts import Config, Count, Fraction, Plugin


class WeightedLoss(Plugin):
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this term in the sum of all losses."""


class DistillOptions(Config):
    losses: Annotated[list[WeightedLoss], Field(min_length=1)]
    num_tokens: Count
    """Tokens trained on; the corpus is repeated when it is smaller."""
    initializer: Plugin = Plugin(name="incoming")
    """Where the student's weights come from; `incoming` is the model of the step before."""
    batch_blocks: Count = 16
    """Blocks per optimiser step over all workers and accumulation steps."""
    micro_batch_blocks: Count = 8
    """Blocks per forward pass of one worker."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak, reached after the warm-up; a cosine then falls to a tenth of it."""
    warmup: Fraction = 0.05
    """Fraction of the steps that warm up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed ZeRO stage."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: Count = 50
    """Optimiser steps between checkpoints; the most that a crash repeats."""
