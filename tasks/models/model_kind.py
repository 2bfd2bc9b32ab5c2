"""What a checkpoint's head is for, told by its architecture's name."""

from __future__ import annotations

from typing import Any, Literal

HeadKind = Literal["causal_lm", "masked_lm", "sequence_classification", "question_answering"]

SUFFIXES: dict[str, HeadKind] = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForQuestionAnswering": "question_answering",
}
"""Ends of the names of transformers' classes; every other head predicts the next token."""

AUTO_CLASSES: dict[HeadKind, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}
"""Of transformers, by what makes such a model of a folder or a config."""


def head_kind(architecture: str) -> HeadKind:
    """Return what `config.architectures[0]`, as in `ModelRef.architecture`, is for."""
    return next(
        (kind for suffix, kind in SUFFIXES.items() if architecture.endswith(suffix)), "causal_lm"
    )


def config_kind(config: Any) -> HeadKind:
    """Return the same of a config of transformers, or of config.json."""
    named = config.get("architectures") if isinstance(config, dict) else config.architectures
    return head_kind((named or [""])[0])


def auto_class(config: Any) -> Any:
    """Return the Auto class of transformers that makes the model of a config, or of config.json."""
    import transformers

    return getattr(transformers, AUTO_CLASSES[config_kind(config)])
