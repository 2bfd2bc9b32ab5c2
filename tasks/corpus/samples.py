"""A few rows of a stored corpus, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.storage import SCHEME, localize
from tasks.corpus.rows import Row
from tasks.corpus.shards import read_shard
from tasks.records import CorpusRef

if TYPE_CHECKING:
    from infra.storage import Store


def sample_rows(store: Store, corpus: CorpusRef, num_rows: int) -> list[Row]:
    """Return rows from all over a corpus, the same ones each time; a shard is read at a time."""
    prefix = corpus.uri.removeprefix(SCHEME)
    shards = store.list(f"{prefix}/rows/")
    picked: dict[str, int] = {}
    for index in range(num_rows):
        shard = shards[index * len(shards) // num_rows]
        picked[shard] = picked.get(shard, 0) + 1
    found: list[Row] = []
    for shard, count in picked.items():
        rows = read_shard(localize(store, f"{SCHEME}{shard}"))
        count = min(count, len(rows))
        found += [rows[index * len(rows) // count] for index in range(count)]
    return found
