"""The stages of a corpus, as data: sources, labellers, and the filters and packing at its end."""

from collections.abc import Mapping
from typing import Any, Literal

from tasks.models.model_kind import head_kind
from tasks.plugins import plugin_constant, uri_options
from tasks.recipe import Recipe
from tasks.records import DataRef, ModelRef, Record, RowsRef, TextRef
from tasks.stage import Stage


def source_data(recipe: Recipe, number: int) -> dict[str, str]:
    """Return what a corpus source reads: URIs by option. Sources are counted from 1."""
    source = recipe.corpus.sources[number - 1]
    named = {option: source.options[option] for option in uri_options("source", source.name)}
    return {option: uri for option, uri in named.items() if uri is not None}


def source_stage(
    recipe: Recipe, number: int, teacher: ModelRef, data: dict[str, TextRef | DataRef]
) -> Stage:
    """The rows of one source.

    Args:
        number: Of the source in the recipe, from 1.
        data: What it reads, by option.
    """
    source = recipe.corpus.sources[number - 1]
    options = {name: value for name, value in source.options.items() if name not in data}
    return written_stage(recipe, "source", source.name, options, number, teacher, data)


def label_stage(recipe: Recipe, number: int, teacher: ModelRef, rows: list[RowsRef]) -> Stage:
    """All rows with what one labeller, counted from 1, adds to them."""
    label = recipe.corpus.labels[number - 1]
    return written_stage(
        recipe, "label", label.name, label.options, number, teacher, number_rows(rows)
    )


def written_stage(
    recipe: Recipe,
    kind: Literal["source", "label"],
    name: str,
    options: dict[str, Any],
    number: int,
    teacher: ModelRef,
    inputs: Mapping[str, Record],
) -> Stage:
    """A stage of a corpus plugin; the teacher and the generator enter the key if it uses them."""
    entries = {
        "source": "tasks.corpus.reading:read_source",
        "label": "tasks.corpus.labelling:label_rows",
    }
    uses = plugin_constant(kind, name, "USES")
    generator = recipe.corpus.generator if "generator" in uses else None
    patience: set[str] = set()
    if generator:
        uses = (*uses, *plugin_constant("generator", generator.name, "USES"))
        patience = set(plugin_constant("generator", generator.name, "EXECUTION"))
    return Stage(
        name=kind,
        entry=entries[kind],
        options={
            "name": name,
            "options": options,
            "generator": generator and generator.model_dump(exclude={"options": patience}),
            "task": recipe.task and recipe.task.model_dump(),
            "head": head_kind(teacher.architecture),
            "trust_remote_code": recipe.teacher.trust_remote_code,
            # Sources that differ in nothing but their place yield different rows.
            "seed": recipe.seed * 1009 + number,
        },
        inputs={**({"teacher": teacher} if "teacher" in uses else {}), **inputs},
        plugins=((kind, name), *((("generator", generator.name),) if generator else ())),
        execution={"generator": generator and generator.model_dump()},
    )


def number_rows(rows: list[RowsRef]) -> dict[str, RowsRef]:
    return {f"rows{number:03d}": ref for number, ref in enumerate(rows, start=1)}


def corpus_stage(
    recipe: Recipe, teacher: ModelRef, rows: list[RowsRef], evaluation: TextRef
) -> Stage:
    filters = recipe.corpus.filters
    compares = any("evaluation" in plugin_constant("filter", f.name, "USES") for f in filters)
    return Stage(
        name="corpus",
        entry="tasks.corpus.building:build_corpus",
        options={
            "filters": [f.model_dump() for f in filters],
            "block_tokens": recipe.corpus.block_tokens,
            "task": recipe.task and recipe.task.model_dump(),
            "trust_remote_code": recipe.teacher.trust_remote_code,
            "seed": recipe.seed,
        },
        inputs={
            "teacher": teacher,
            **({"evaluation": evaluation} if compares else {}),
            **number_rows(rows),
        },
        plugins=tuple(("filter", f.name) for f in filters),
    )
