"""Rows on disk: Parquet shards, small enough that one is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow.parquet
from datasets import Dataset, Features, Value, disable_progress_bars

from tasks.corpus.rows import Row
from tasks.records import RowsRef

SHARD_ROWS = 4096
SHARD_CHARACTERS = 2**24
"""Most that a shard holds, unless one row is longer."""

FEATURES = Features(
    {
        "text": Value("string"),
        "text_pair": Value("string"),
        "output": Value("string"),
        "chat": Value("bool"),
        "source": Value("string"),
        "generator": Value("string"),
        "prompt_digest": Value("string"),
        "seed": Value("int64"),
        "licence": Value("string"),
    }
)


class Shard(NamedTuple):
    """Where some rows lie."""

    uri: str
    num_rows: int


def shard_name(number: int) -> str:
    return f"rows/{number:05d}.parquet"


def list_shards(rows: RowsRef) -> list[Shard]:
    return [Shard(f"{rows.uri}/{shard_name(n)}", size) for n, size in enumerate(rows.num_rows)]


def write_shards(rows: Iterable[Row], out: Path) -> list[int]:
    """Write rows to `out/rows/`; return how many each shard holds."""
    return [write_shard(shard, out, number) for number, shard in enumerate(cut_shards(rows))]


def cut_shards(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield shards of SHARD_ROWS rows, or of fewer where these are long."""
    shard: list[Row] = []
    num_characters = 0
    for row in rows:
        length = len(row["text"]) + len(row["text_pair"] or "") + len(row["output"] or "")
        if shard and (len(shard) == SHARD_ROWS or num_characters + length > SHARD_CHARACTERS):
            yield shard
            shard, num_characters = [], 0
        shard.append(row)
        num_characters += length
    if shard:
        yield shard


def write_shard(rows: list[Row], out: Path, number: int) -> int:
    """Write one shard of rows; return how many they are."""
    write_table(Dataset.from_list(rows, features=FEATURES).data.table, out, number)
    return len(rows)


def write_table(table: pyarrow.Table, out: Path, number: int) -> None:
    disable_progress_bars()
    path = out / shard_name(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset(table).to_parquet(path)


def read_table(path: Path) -> pyarrow.Table:
    return pyarrow.parquet.read_table(path)


def read_shard(path: Path) -> list[Row]:
    return cast(list[Row], read_table(path).to_pylist())


class Rows:
    """All rows of some shards, read again each time they are iterated over."""

    def __init__(self, shards: list[Shard], local: Callable[[str], Path]) -> None:
        self.shards = shards
        self.local = local

    def __len__(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    def __iter__(self) -> Iterator[Row]:
        for shard in self.shards:
            yield from read_shard(self.local(shard.uri))
