"""Drop a row whose text was seen before."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row

USES = ()


def keep(context: CorpusContext) -> Filter:
    """Compare rows by the sha256 of their texts: about 155 bytes of memory a row, however long."""
    return Filter(digest_texts, find_repeated)


def digest_texts(state: None, rows: list[Row]) -> list[bytes]:
    texts = ("\0".join([row["text"], row["text_pair"] or "", row["output"] or ""]) for row in rows)
    return [hashlib.sha256(text.encode()).digest() for text in texts]


def find_repeated(digests: Iterable[Any]) -> Iterator[str | None]:
    seen: set[bytes] = set()
    for digest in digests:
        yield "exact duplicate" if digest in seen else None
        seen.add(digest)
