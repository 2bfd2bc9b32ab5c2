"""Every stage of a recipe, as data: what runs, with which options, on which records.

A table of contents. Building a stage imports nothing heavy, so `plan` and a run whose every key
is a hit never import torch or Ray. What says where, when or for whom (cluster, publish) stays out.
"""

from dataclasses import replace

from tasks.distill_options import DistillOptions
from tasks.outside_code import is_outside, source_digest
from tasks.plugins import plugin_names, uri_options
from tasks.prune_options import PruneOptions
from tasks.recipe import Export, Recipe
from tasks.records import CorpusRef, ModelRef, TextRef
from tasks.stage import Stage


def device_kind(recipe: Recipe) -> str:
    return "cuda" if recipe.cluster.gpus_per_worker else "cpu"


def source_uris(recipe: Recipe) -> dict[str, str]:
    """Return the files that the corpus sources read, by the name of the stage's input."""
    return {
        f"source{index}_{option}": source.options[option]
        for index, source in enumerate(recipe.corpus.sources)
        for option in uri_options("source", source.name)
    }


def corpus_stage(recipe: Recipe, teacher: ModelRef, texts: dict[str, TextRef]) -> Stage:
    sources = [
        {
            "name": source.name,
            "options": {
                option: value
                for option, value in source.options.items()
                if option not in uri_options("source", source.name)
            },
        }
        for source in recipe.corpus.sources
    ]
    return Stage(
        name="corpus",
        entry="tasks.corpus.building:build_corpus",
        options={
            "sources": sources,
            "filters": [f.model_dump() for f in recipe.corpus.filters],
            "block_tokens": recipe.corpus.block_tokens,
            "trust_remote_code": recipe.teacher.trust_remote_code,
            "seed": recipe.seed,
        },
        inputs={"teacher": teacher, **texts},
        plugins=tuple(
            [("source", s.name) for s in recipe.corpus.sources]
            + [("filter", f.name) for f in recipe.corpus.filters]
        ),
    )


def prune_stage(
    recipe: Recipe, options: PruneOptions, model: ModelRef, calibration: TextRef
) -> Stage:
    utility = options.utility
    timed = options.budget is not None and options.budget.latency_ms is not None
    # A time is one machine's, so where it is measured enters the key.
    where = {"device": device_kind(recipe), "threads": recipe.cluster.threads_per_worker}
    code = {"utility_code": source_digest(utility)} if is_outside(utility) else {}
    return Stage(
        name="prune",
        entry="tasks.prune.pruning:prune",
        options=options.model_dump()
        | {
            "seed": recipe.seed,
            "alignment": recipe.alignment,
            "num_windows": recipe.calibration.num_windows,
            "window": recipe.calibration.window,
            "trust_remote_code": recipe.teacher.trust_remote_code,
        }
        | code
        | (where if timed else {}),
        inputs={"model": model, "calibration": calibration},
        plugins=(
            ("criterion", options.criterion.name),
            *(() if is_outside(utility) else (("utility", utility),)),
        ),
        execution={"offload": recipe.cluster.offload},
    )


def distill_stage(
    recipe: Recipe,
    options: DistillOptions,
    teacher: ModelRef,
    student: ModelRef,
    corpus: CorpusRef,
) -> Stage:
    return Stage(
        name="distill",
        entry="tasks.distill.distillation:distill",
        options=options.model_dump()
        | {
            "seed": recipe.seed,
            # Floating-point sums depend on these, so training's key does, too.
            "world_size": recipe.cluster.workers,
            "threads": recipe.cluster.threads_per_worker,
            "device": device_kind(recipe),
            "trust_remote_code": recipe.teacher.trust_remote_code,
        },
        inputs={"teacher": teacher, "student": student, "corpus": corpus},
        plugins=(
            *(("loss", loss.name) for loss in options.losses),
            ("initializer", options.initializer.name),
        ),
    )


def from_scratch(options: DistillOptions) -> DistillOptions:
    """The same training of a freshly initialised student on the corpus alone, without a teacher."""
    return DistillOptions(
        **options.model_dump(exclude={"losses", "initializer"}),
        losses=[{"name": "cross_entropy", "weight": 1.0}],
        initializer={"name": "fresh"},
    )


def train_export_stage(
    recipe: Recipe, export: Export, teacher: ModelRef, student: ModelRef, corpus: CorpusRef
) -> Stage:
    """The export's own training, through the rounding that the export will meet."""
    assert export.train
    stage = distill_stage(recipe, export.train, teacher, student, corpus)
    rounding = {"method": export.method, "options": export.options, "dtype": export.dtype}
    return replace(
        stage,
        entry="tasks.distill.rounded_distillation:distill_rounded",
        options=stage.options | {"rounding": rounding},
        plugins=(*stage.plugins, ("method", export.method)),
    )


def quantize_stage(recipe: Recipe, export: Export, model: ModelRef, calibration: TextRef) -> Stage:
    return Stage(
        name="quantize",
        entry="tasks.quantize.quantization:quantize_model",
        options={
            "method": export.method,
            "method_options": export.options,
            "format": export.format,
            "format_options": export.format_options,
            "mixed_precision": export.mixed_precision and export.mixed_precision.model_dump(),
            "dtype": export.dtype,
            "num_windows": recipe.calibration.num_windows,
            "window": recipe.calibration.window,
            "trust_remote_code": recipe.teacher.trust_remote_code,
        },
        inputs={"model": model, "calibration": calibration},
        plugins=(("method", export.method), ("format", export.format)),
    )


def evaluate_stage(recipe: Recipe, model: ModelRef, text: TextRef) -> Stage:
    return Stage(
        name="evaluate",
        entry="tasks.evaluate.perplexity:evaluate_model",
        options={
            "window": recipe.evaluation.window,
            "stride": recipe.evaluation.stride or recipe.evaluation.window,
            "device": device_kind(recipe),
            "trust_remote_code": recipe.teacher.trust_remote_code,
        },
        inputs={"model": model, "text": text},
        # An export may be in any of them; they are found by name when it is loaded.
        plugins=tuple(("encoding", name) for name in plugin_names("encoding")),
    )
