"""Rows of text: JSONL files of `{"text": ...}` or `{"messages": [...]}`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import CorpusError


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file: `{"text": ...}` or `{"messages": [...]}`.

    Raises:
        CorpusError: a row is not JSON, or has neither key.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{path}:{number} is not JSON: {error}") from None
            if not isinstance(row, dict) or not ("text" in row or "messages" in row):
                raise CorpusError(f"{path}:{number}: expected a mapping with text or messages")
            yield row
