"""What a checkpoint's head is for, told by its architecture's name."""

from __future__ import annotations

from typing import Literal

HeadKind = Literal["causal_lm", "masked_lm", "sequence_classification", "question_answering"]

SUFFIXES: dict[str, HeadKind] = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForQuestionAnswering": "question_answering",
}
"""Ends of the names of transformers' classes; every other head predicts the next token."""


def head_kind(architecture: str) -> HeadKind:
    """Return what `config.architectures[0]`, as in `ModelRef.architecture`, is for."""
    return next(
        (kind for suffix, kind in SUFFIXES.items() if architecture.endswith(suffix)), "causal_lm"
    )
