"""What a distill step may say in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.outside_code import is_outside
from tasks.plugins import plugin_constant
from tasks.recipe_parts import Config, Count, Fraction, NamedModel, Plugin
from tasks.trainable import Full, Trainable


class WeightedLoss(Plugin):
    """A plugin, or a function of your own as `package.module:function`, which must import here and
    on every worker: called with the student's and the teacher's logits, [tokens, vocabulary], and
    the next tokens' ids [tokens], some tokens at a time; returns a differentiable loss for each."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this term in the sum of all losses."""


def needs_a_teacher(loss: str) -> bool:
    """Whether a loss looks at the teacher; a function of the user's own is always shown it."""
    return is_outside(loss) or bool(plugin_constant("loss", loss, "NEEDS_TEACHER"))


def reads_a_store(loss: str) -> bool:
    """Whether a loss can be had from stored teacher logits."""
    return not is_outside(loss) and bool(plugin_constant("loss", loss, "FROM_STORE"))


class DistillOptions(Config):
    losses: Annotated[list[WeightedLoss], Field(min_length=1)]
    num_tokens: Count
    """Tokens trained on; the corpus is repeated when it is smaller."""
    initializer: Plugin = Plugin(name="incoming")
    """How the student is made of the incoming model; `incoming` is that model itself."""
    teacher: Literal["online", "stored"] = "online"
    """`stored`: a stage of its own computes the teacher's distributions over the corpus, once for
    every student, and training reads them; no worker of the training holds the teacher."""
    stored_k: Annotated[int, Field(ge=1, le=255)] | None = None
    """Tokens stored at each position; None stores those that hold 99.5% of the probability, 64 at
    most."""
    student: NamedModel | None = None
    """The incoming model in place of that of the step before: of any family, with the teacher's
    tokenizer."""
    trainable: Trainable = Full()
    """Which of its parameters are trained: `full`, `top_layers`, `lora` or `qlora`, the latter
    three with options of their own."""
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
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: what is spread over the workers instead of copied to each. 1: the
    optimizer's state, 2: gradients too, 3: weights too, the teacher's among them."""
    offload: Literal["none", "cpu"] = "none"
    """Where the optimizer's state lives and its steps are taken; `cpu` makes zero_stage 0 a 1."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """float16 scales the loss, skips steps that overflow, and needs GPUs."""
    activation_checkpointing: bool = False
    """Keep only what enters each block, and compute the rest again for the gradient: about a third
    more arithmetic, far less memory."""
    checkpoint_steps: Count = 50
    """Optimiser steps between checkpoints; the most that a crash repeats."""

    @model_validator(mode="after")
    def _zero_3_spreads_floats(self) -> Self:
        if self.zero_stage == 3 and self.trainable.kind == "qlora":
            raise ValueError(
                "zero_stage: 3 spreads floating-point weights, got trainable: qlora, which holds "
                "them in 4 bits; say zero_stage: 2, or trainable: lora"
            )
        return self

    @model_validator(mode="after")
    def _store_serves_the_losses(self) -> Self:
        if self.teacher == "online":
            if self.stored_k:
                raise ValueError("stored_k: expected teacher: stored beside it, got online")
            return self
        names = [loss.name for loss in self.losses]
        if refused := [name for name in names if not reads_a_store(name)]:
            raise ValueError(
                f"teacher: stored holds probabilities of a few tokens, got the losses {refused}, "
                "which look at more of the teacher; leave them out, or say teacher: online"
            )
        if not any(map(needs_a_teacher, names)):
            raise ValueError(
                f"teacher: stored: expected a loss that looks at the teacher, got {names}; add "
                "one, or leave teacher out"
            )
        return self
