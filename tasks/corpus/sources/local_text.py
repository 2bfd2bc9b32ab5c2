"""Rows of a JSONL file, in a folder or in a bucket."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from tasks.corpus.context import CorpusContext
from tasks.corpus.rows import read_rows
from tasks.plugins import Uri

USES = ()


def read(
    context: CorpusContext,
    *,
    path: Uri,
    max_rows: int | None = None,
    licence: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the file's first `max_rows` rows, all of them where that is None.

    Args:
        licence: Of all rows that do not state their own.
    """
    for row in islice(read_rows(context.local(path)), max_rows):
        yield {"licence": licence} | row
