"""The label stage: one labeller gives outputs to the rows that have none yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tasks.corpus.context import add_up
from tasks.corpus.reading import open_context
from tasks.corpus.rows import Row
from tasks.corpus.shards import Rows, list_shards, write_shards
from tasks.digests import digest_folder
from tasks.plugins import load_plugin
from tasks.records import ModelRef, RowsRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


def label_rows(
    space: StageSpace,
    options: dict[str, Any],
    *,
    teacher: ModelRef | None = None,
    **rows: RowsRef,
) -> RowsRef:
    """Write all rows again, with outputs where the labeller has found one.

    What the record counts as refused and spent includes that of the rows that came in.

    Args:
        teacher: Where the labeller, or the generator that it uses, looks at it.
        rows: Of each source, in the order of their names.
    """
    context = open_context(space, options, teacher)
    shards = [shard for _, ref in sorted(rows.items()) for shard in list_shards(ref)]
    unlabelled = Rows(shards, context.local)
    outputs = load_plugin("label", options["name"])(context, unlabelled, **options["options"])
    sizes = write_shards(fill_in(unlabelled, outputs), space.out)
    return RowsRef(
        uri=space.output_uri(),
        digest=digest_folder(space.out),
        num_rows=sizes,
        refused=add_up([*(ref.refused for ref in rows.values()), context.refused]),
        spent=add_up([*(ref.spent for ref in rows.values()), context.spent]),
    )


def fill_in(rows: Iterable[Row], outputs: Iterable[str | None]) -> Iterator[Row]:
    """Yield each row with its output; one that it has already stays."""
    for row, output in zip(rows, outputs, strict=True):
        if row["output"] is None and output is not None:
            row["output"] = output
        yield row
