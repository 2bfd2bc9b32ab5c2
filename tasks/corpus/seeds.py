"""Texts that a model starts from when it writes others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.corpus.context import CorpusContext
from tasks.corpus.rows import read_rows


def read_seeds(context: CorpusContext, uri: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file that have a text; others are counted as refused."""
    for row in read_rows(context.local(uri)):
        if "messages" in row:
            context.refused["a seed that is a chat"] += 1
        elif not (isinstance(row["text"], str) and row["text"].strip()):
            context.refused["a seed without text"] += 1
        else:
            yield row
