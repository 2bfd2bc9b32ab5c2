"""What a teacher that does not predict the next token cannot do, found from its config alone."""

from __future__ import annotations

from typing import Any

from tasks.distill_options import DistillOptions
from tasks.models.model_kind import HeadKind, config_kind
from tasks.outside_code import is_outside
from tasks.plugins import plugin_constant
from tasks.recipe import Export, Recipe

NAMES: dict[HeadKind, str] = {
    "causal_lm": "a causal language model",
    "masked_lm": "a masked language model",
    "sequence_classification": "a classifier",
    "question_answering": "a question-answering model",
}


def check_head(recipe: Recipe, config: dict[str, Any]) -> str:
    """Hold a recipe against its teacher's head; return what the teacher is.

    Args:
        config: The teacher's config.json.

    Raises:
        ValueError: something in the recipe needs a head of another kind.
    """
    kind = config_kind(config)
    is_score = kind == "sequence_classification" and count_labels(config) == 1
    trainings = [step.distill for step in recipe.steps] + [
        export.train for export in recipe.exports
    ]
    for options in trainings:
        if options:
            check_losses(options, is_score)
    if kind == "causal_lm":
        return NAMES[kind]
    if is_score and recipe.comparisons and not any(map(has_scores, trainings)):
        raise ValueError(
            "comparisons: from_scratch learns from the rows' scores alone, and no training has the "
            "loss label_mse; add it, or leave out comparisons"
        )
    name = f"{NAMES[kind]}, {(config['architectures'])[0]}"
    check_labels(config, name)
    check_corpus(recipe, config, name)
    if any(step.prune for step in recipe.steps):
        raise ValueError(
            f"steps: prune measures units by the next token's loss, and the teacher is {name}; "
            "make it smaller by `distill: {initializer: {name: every_nth_layer}}`"
        )
    for options in trainings:
        if options:
            check_training(options, name)
    for export in recipe.exports:
        check_export(export, name)
    return name


def has_scores(options: DistillOptions | None) -> bool:
    return options is not None and any(loss.name == "label_mse" for loss in options.losses)


def count_labels(config: dict[str, Any]) -> int:
    """Return a classifier's outputs; transformers' default is 2."""
    return len(config.get("id2label") or ()) or int(config.get("num_labels", 2))


def check_losses(options: DistillOptions, is_score: bool) -> None:
    output = "score" if is_score else "distribution"
    for loss in options.losses:
        if not is_outside(loss.name) and output not in plugin_constant(
            "loss", loss.name, "OUTPUTS"
        ):
            raise ValueError(
                f"distill: losses: {loss.name} is not for a model whose output is a {output}; "
                + (
                    "use label_mse with the rows' scores, and logit_mse with the teacher's"
                    if is_score
                    else "use cross_entropy with the labels, and forward_kl with the teacher's"
                )
            )


def check_labels(config: dict[str, Any], name: str) -> None:
    problem = config.get("problem_type")
    if problem == "multi_label_classification" or (
        problem == "regression" and count_labels(config) > 1
    ):
        raise ValueError(
            f"teacher.model: expected one label or one score for each row, got {name} with "
            f"problem_type {problem} and {count_labels(config)} outputs"
        )


def check_corpus(recipe: Recipe, config: dict[str, Any], name: str) -> None:
    corpus = recipe.corpus
    named = [("source", plugin.name) for plugin in corpus.sources]
    named += [("label", plugin.name) for plugin in corpus.labels]
    for kind, plugin in named:
        uses = plugin_constant(kind, plugin, "USES")
        if "generator" in uses:
            uses = plugin_constant("generator", corpus.generator.name, "USES")
        if "teacher" in uses:
            raise ValueError(
                f"corpus: {kind} {plugin} lets the teacher write or answer in words, and the "
                f"teacher is {name}; use local_text or data_sets, or `generator: endpoint`"
            )
    longest = config.get("max_position_embeddings")
    if longest and corpus.block_tokens > longest:
        raise ValueError(
            f"corpus: expected block_tokens of at most {longest}, the teacher's "
            f"max_position_embeddings, got {corpus.block_tokens}; longer rows are cut"
        )


def check_training(options: DistillOptions, name: str) -> None:
    if options.teacher == "stored":
        raise ValueError(
            f"distill: teacher: stored keeps distributions over next tokens, and the teacher is "
            f"{name}; say teacher: online, its logits are few"
        )
    if plugin_constant("initializer", options.initializer.name, "NEEDS_DECODER"):
        raise ValueError(
            f"distill: initializer {options.initializer.name} is for causal language models, and "
            f"the teacher is {name}; use every_nth_layer or first_layers"
        )


def check_export(export: Export, name: str) -> None:
    """Refuse what looks at the next token's loss, or is for runtimes of language models."""
    calibrated = plugin_constant("method", export.method, "CALIBRATED") or export.mixed_precision
    if calibrated or export.format == "gguf" or export.runtime in ("vllm", "llama.cpp"):
        what = "method" if calibrated else "format" if export.format == "gguf" else "runtime"
        got = {"method": export.method, "format": export.format, "runtime": export.runtime}[what]
        raise ValueError(
            f"exports: {export.name}: {what} {got} is for causal language models, and the teacher "
            f"is {name}; use method: none or absmax with format: safetensors"
        )
