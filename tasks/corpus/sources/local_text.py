"""Rows of a JSONL file, in a folder or in a bucket."""

from collections.abc import Iterator
from typing import Any

from tasks.corpus.rows import read_rows
from tasks.corpus.source_context import SourceContext
from tasks.plugins import Uri


def read(
    context: SourceContext, *, path: Uri, max_rows: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the file's first `max_rows` rows, all of them where that is None."""
    for number, row in enumerate(read_rows(context.local(path))):
        if max_rows is not None and number >= max_rows:
            return
        yield row
