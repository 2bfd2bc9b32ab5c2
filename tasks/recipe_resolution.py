"""What a recipe names, found and filled in: models, plugins, their options, absolute paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from tasks.distill_options import DistillOptions, WeightedLoss
from tasks.evaluation_options import LabelledTask, LmEvalTask
from tasks.outside_code import find_source, is_outside
from tasks.plugins import plugin_constant, plugin_names, resolve_options, uri_options
from tasks.quantize.pairing import check_codes, check_pair
from tasks.recipe import Export, Recipe, Step
from tasks.recipe_parts import NamedModel, Plugin

Model = TypeVar("Model", bound=NamedModel)


def resolve_uri(uri: str, folder: Path) -> str:
    return uri if "://" in uri else str((folder / uri).resolve())


def resolve_model(key: str, named: Model, folder: Path) -> Model:
    """Make a model's folder absolute, against the recipe's; a hub id or a URI stays.

    Raises:
        ValueError: a path leads to no folder.
    """
    path = folder / named.model
    if path.is_dir():
        return named.model_copy(update={"model": str(path.resolve())})
    if named.model.startswith((".", "/")):
        raise ValueError(f"{key}: no folder {path.resolve()}")
    return named


def resolve_task(task: LabelledTask | LmEvalTask, folder: Path) -> LabelledTask | LmEvalTask:
    """Make the path of what an evaluation task reads absolute."""
    if isinstance(task, LabelledTask):
        return task.model_copy(update={"data": resolve_uri(task.data, folder)})
    return task.model_copy(update={"include": task.include and resolve_uri(task.include, folder)})


def check_utility(name: str) -> None:
    """Find the file of a utility, without importing it."""
    if is_outside(name):
        find_source(name)
    elif name not in plugin_names("utility"):
        raise ValueError(
            f"unknown utility {name!r}; choose from {plugin_names('utility')}, or name a function "
            "of your own as package.module:function"
        )


def check_trainable(export: Export) -> None:
    """Make sure that a model can be trained through an export's rounding.

    Raises:
        ValueError: the rounding is not fixed by the weights alone.
    """
    rounders = [
        name
        for name in plugin_names("method")
        if not plugin_constant("method", name, "CALIBRATED")
        and plugin_constant("method", name, "ENCODINGS")
    ]
    if export.method not in rounders:
        raise ValueError(
            f"exports: {export.name}: train: expected a method that rounds by the weights alone, "
            f"got {export.method}; choose from {rounders}, or leave out train"
        )
    assert export.train
    if export.train.student or export.train.trainable.kind in ("lora", "qlora"):
        raise ValueError(
            f"exports: {export.name}: train: what is rounded is the weights of the last step's "
            "model; expected no student, and trainable: full or top_layers"
        )
    if export.train.zero_stage == 3:
        raise ValueError(
            f"exports: {export.name}: train: a block is rounded as a whole, and zero_stage: 3 "
            "spreads its weights over the workers; say zero_stage: 2"
        )
    if export.mixed_precision:
        raise ValueError(
            f"exports: {export.name}: train: the widths of mixed_precision are chosen after the "
            "training; leave out one of the two"
        )


def resolve(recipe: Recipe, folder: Path) -> Recipe:
    """Check every plugin, fill in its options, and make relative paths absolute."""

    def plugin(kind: str, chosen: Plugin) -> Plugin:
        done = chosen.resolved(kind)
        named = {n: done.options[n] for n in uri_options(kind, done.name)}
        uris = {n: resolve_uri(uri, folder) for n, uri in named.items() if uri is not None}
        return done.model_copy(update={"options": done.options | uris})

    def weighted_loss(chosen: WeightedLoss) -> WeightedLoss:
        if not is_outside(chosen.name):
            return chosen.resolved("loss")
        find_source(chosen.name)
        if chosen.options:
            raise ValueError(
                f"loss {chosen.name}: a function of your own takes no options, got "
                f"{chosen.options}; name one that has them set"
            )
        return chosen

    def distill(chosen: DistillOptions) -> DistillOptions:
        losses = [weighted_loss(loss) for loss in chosen.losses]
        initializer = plugin("initializer", chosen.initializer)
        if initializer.options.get("keep") == "factored" and not recipe.teacher.trust_remote_code:
            raise ValueError(
                f"initializer {initializer.name}: keep: factored makes a model that loads with "
                "trust_remote_code only, got teacher.trust_remote_code: false; set it to true, or "
                "choose keep: folded"
            )
        student = chosen.student and resolve_model("distill.student.model", chosen.student, folder)
        update = {"losses": losses, "initializer": initializer, "student": student}
        return chosen.model_copy(update=update)

    def step(chosen: Step) -> Step:
        if chosen.prune:
            criterion = plugin("criterion", chosen.prune.criterion)
            check_utility(chosen.prune.utility)
            prune = chosen.prune.model_copy(update={"criterion": criterion})
            return Step(prune=prune)
        assert chosen.distill
        return Step(distill=distill(chosen.distill))

    def export(chosen: Export) -> Export:
        options = resolve_options("method", chosen.method, chosen.options)
        format_options = resolve_options("format", chosen.format, chosen.format_options)
        check_pair(chosen.method, chosen.format)
        widths = chosen.mixed_precision.bits if chosen.mixed_precision else []
        if widths and "plain" in plugin_constant("method", chosen.method, "ENCODINGS"):
            raise ValueError(
                f"exports: {chosen.name}: mixed_precision: {chosen.method} changes more of a block "
                "than the weights whose width is chosen; use gptq or absmax"
            )
        for width in [{"bits": bits} for bits in widths] or [{}]:
            given = resolve_options("method", chosen.method, chosen.options | width)
            given |= {"dtype": chosen.dtype, "mixed_precision": "given" if widths else None}
            check_codes(chosen.method, given, chosen.format, chosen.runtime)
        update: dict[str, Any] = {"options": options, "format_options": format_options}
        if chosen.train:
            check_trainable(chosen)
            update["train"] = distill(chosen.train)
        return chosen.model_copy(update=update)

    store = recipe.publish.store
    if store and store.startswith("file://"):
        store = f"file://{(folder / store.removeprefix('file://')).resolve()}"
    done = recipe.model_copy(
        update={
            "teacher": resolve_model("teacher.model", recipe.teacher, folder),
            "calibration": recipe.calibration.model_copy(
                update={"text": resolve_uri(recipe.calibration.text, folder)}
            ),
            "evaluation": recipe.evaluation.model_copy(
                update={
                    "text": resolve_uri(recipe.evaluation.text, folder),
                    "tasks": [resolve_task(task, folder) for task in recipe.evaluation.tasks],
                }
            ),
            "corpus": recipe.corpus.model_copy(
                update={
                    "sources": [plugin("source", s) for s in recipe.corpus.sources],
                    "generator": plugin("generator", recipe.corpus.generator),
                    "labels": [plugin("label", chosen) for chosen in recipe.corpus.labels],
                    "filters": [plugin("filter", f) for f in recipe.corpus.filters],
                }
            ),
            "steps": [step(s) for s in recipe.steps],
            "exports": [export(e) for e in recipe.exports],
            "publish": recipe.publish.model_copy(update={"store": store}),
        }
    )
    assert done.alignment  # raises where group sizes do not fit together
    return done
