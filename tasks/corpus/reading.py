"""The source stage: what one source yields, as shards of rows with their provenance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.corpus.context import CorpusContext
from tasks.corpus.rows import Row, make_row
from tasks.corpus.shards import write_shards
from tasks.corpus_options import Task
from tasks.digests import digest_folder
from tasks.errors import CorpusError
from tasks.plugins import load_plugin
from tasks.records import DataRef, ModelRef, RowsRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


def read_source(
    space: StageSpace,
    options: dict[str, Any],
    *,
    teacher: ModelRef | None = None,
    **data: TextRef | DataRef,
) -> RowsRef:
    """Write the source's rows.

    Args:
        teacher: Where the source, or the generator that it uses, looks at it.
        data: What the source reads, by the name of its option.

    Raises:
        CorpusError: the source yields nothing, or a row whose label is none of the task's.
    """
    name = options["name"]
    context = open_context(space, options, teacher)
    read = load_plugin("source", name)
    uris = {option: ref.uri for option, ref in data.items()}
    found = read(context, **(options["options"] | uris))
    sizes = write_shards(make_rows(found, context, name), space.out)
    if not sizes:
        why = f"; refused: {dict(context.refused)}" if context.refused else ""
        raise CorpusError(f"the source {name} yielded no rows{why}")
    return RowsRef(
        uri=space.output_uri(),
        digest=digest_folder(space.out),
        num_rows=sizes,
        refused=dict(sorted(context.refused.items())),
        spent=dict(sorted(context.spent.items())),
    )


def open_context(
    space: StageSpace, options: dict[str, Any], teacher: ModelRef | None
) -> CorpusContext:
    """Return what a source or labeller with these stage options may use."""
    context = CorpusContext(
        space=space,
        seed=options["seed"],
        name=options["name"],
        task=options["task"] and Task(**options["task"]),
        head=options["head"],
        teacher=teacher,
        trust_remote_code=options["trust_remote_code"],
    )
    if generator := options["generator"]:
        connect = load_plugin("generator", generator["name"])
        context.generator = connect(context, **generator["options"])
    return context


def make_rows(
    found: Iterator[dict[str, Any]], context: CorpusContext, source: str
) -> Iterator[Row]:
    for number, raw in enumerate(found, start=1):
        try:
            yield make_row(raw, source, context.task, context.head)
        except ValueError as error:
            raise CorpusError(
                f"row {number} of the source {source}: {error}",
                "correct the row, or task.labels in the recipe",
            ) from None
