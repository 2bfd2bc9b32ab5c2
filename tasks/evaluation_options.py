"""What a recipe may say of how models are judged."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tasks.recipe_parts import Config, Count, Name

MetricName = Literal["accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman"]

OF_SCORES = ("pearson", "spearman")
"""Metrics of a regression; all others are of classes."""


def listed(given: Any) -> Any:
    """Let `metrics: f1` stand for a list of one."""
    return [given] if isinstance(given, str) else given


class LabelledTask(Config):
    """Rows with a label, and what the model says of them."""

    name: Name
    data: str
    """JSONL of rows with a `text`, where the task is about two a `text_pair`, and a `label`."""
    metrics: Annotated[list[MetricName], Field(min_length=1), BeforeValidator(listed)] = Field(
        default=["accuracy"]
    )
    """The task's score is their mean. `f1` is that of the second label, `f1_macro` the mean over
    labels; `pearson` and `spearman` are of a regression."""
    labels: list[str] | None = None
    """Names of a classifier's outputs, in their order; those in its config when left out."""
    prompt: str | None = None
    """What a causal language model reads; `{text}` and `{text_pair}` stand for the row's."""
    verbalizers: Annotated[dict[str, str], Field(min_length=2)] | None = None
    """What it says for each label, in the labels' order; the likeliest continuation is chosen."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if (self.prompt is None) != (self.verbalizers is None):
            raise ValueError("prompt and verbalizers go together, got one of them")
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("prompt must hold {text}, where the row's text is put")
        if len({metric in OF_SCORES for metric in self.metrics}) > 1:
            raise ValueError(
                f"metrics: {' and '.join(OF_SCORES)} are of scores, the others of classes, got "
                f"{self.metrics}; a task has one kind"
            )
        return self


class LmEvalTask(Config):
    """A task of EleutherAI's lm-evaluation-harness, by its name there."""

    name: Name
    lm_eval: str
    """The task's name in the harness, or in a YAML file of `include`."""
    metric: str = "acc"
    """Which of the task's metrics is its score: one that is a mean over items."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each item; as the task says when left out."""
    limit: Count | None = None
    """Items, the first ones; all when left out."""
    include: str | None = None
    """A folder with task files of the user's own, and the data that they name."""


def name_of_class(given: Any) -> str:
    harness = "lm_eval" in given if isinstance(given, dict) else isinstance(given, LmEvalTask)
    return LmEvalTask.__name__ if harness else LabelledTask.__name__


EvaluationTask = Annotated[
    Annotated[LabelledTask, Tag("LabelledTask")] | Annotated[LmEvalTask, Tag("LmEvalTask")],
    Discriminator(name_of_class),
]


class LatencyOptions(Config):
    """How long one worker takes, by itself, from a prompt to its continuation."""

    batch_sizes: Annotated[list[Count], Field(min_length=1)] = Field(default=[1])
    prompt_tokens: Count = 128
    """Read at once: the prefill."""
    new_tokens: Annotated[int, Field(ge=2)] = 32
    """Written one by one from the model's cache: the decode."""


class Evaluation(Config):
    text: str
    """Held-out JSONL that decides the gate; of a classifier, rows with a label."""
    window: Count = 256
    """Tokens that the model sees at once."""
    stride: Count | None = None
    """Tokens scored per window; as many as the window holds when left out."""
    tasks: list[EvaluationTask] = Field(default_factory=list)
    """What every model is scored on besides, by tasks that a gate may name."""
    latency: LatencyOptions | None = None
    """Measured where stated."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride must be at most the window ({self.window})")
        names = [task.name for task in self.tasks]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"tasks must have different names, got {sorted(doubled)} twice")
        return self
