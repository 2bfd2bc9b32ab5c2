"""What a model writes, as the report shows it."""

from __future__ import annotations

from tasks.records import Record


class Continuation(Record):
    prompt: str
    """The beginning of a held-out document."""
    text: str
    """What the model goes on with."""
    ended: bool
    """Whether it ended by itself."""


class RankedToken(Record):
    text: str
    """In its place; where it is no text of its own, the vocabulary's name of it."""
    probabilities: list[float]
    """At each of the samples' temperatures."""


class NextTokens(Record):
    """What a model expects at one place of the held-out text."""

    context: str
    """The text right before."""
    actual: str
    """The token that stands there."""
    ranked: list[RankedToken]
    """The likeliest first, which no temperature changes."""


class Samples(Record):
    """`samples.json`. The same recipe, text and tokenizer give the same prompts and places."""

    protocol: str
    temperatures: list[float]
    continuations: list[Continuation]
    next_tokens: list[NextTokens]
