"""Filters: each looks at rows in parallel, a shard a unit of work, and judges them in order."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow

from tasks.corpus.rows import Row
from tasks.corpus.shards import Shard, read_table

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


def no_state() -> None:
    return None


class Filter(NamedTuple):
    """What a filter plugin returns."""

    measure: Callable[[Any, list[Row]], list[Any]]
    """(state, rows) -> a value for each row that Arrow can hold. On a worker, a shard at a time,
    and of each row by itself: what is in a shard must not matter."""
    judge: Callable[[Iterable[Any]], Iterator[str | None]]
    """The values of all rows, in order -> for each None where it is kept, or why it is dropped.
    In one place, so that it may compare rows."""
    state: Callable[[], Any] = no_state
    """Built once a worker."""


class Looked(NamedTuple):
    """One unit of work: the rows of a shard that are kept so far."""

    shard: Shard
    kept: Mask


def apply_filter(
    space: StageSpace, shards: list[Shard], kept: list[Mask], chosen: Filter, group: str
) -> dict[str, int]:
    """Take what a filter drops out of `kept`; return how many rows that are, by reason."""
    units = [Looked(shard, mask.copy()) for shard, mask in zip(shards, kept, strict=True)]
    results = space.stream_units(
        partial(measure_shard, space.localizer, chosen.measure), units, chosen.state, group
    )
    reasons = chosen.judge(value for data in results for value in decode_values(data))
    dropped: Counter[str] = Counter()
    for mask in kept:
        for position in np.flatnonzero(mask):
            if reason := next(reasons):
                mask[position] = False
                dropped[reason] += 1
    return dict(dropped)


def measure_shard(
    localize: Callable[[str], Path],
    measure: Callable[[Any, list[Row]], list[Any]],
    state: Any,
    unit: Looked,
) -> bytes:
    return encode_values(measure(state, kept_rows(localize, unit)))


def kept_rows(localize: Callable[[str], Path], unit: Looked) -> list[Row]:
    return cast(list[Row], kept_table(localize, unit).to_pylist())


def kept_table(localize: Callable[[str], Path], unit: Looked) -> pyarrow.Table:
    return read_table(localize(unit.shard.uri)).filter(pyarrow.array(unit.kept))


def encode_values(values: list[Any]) -> bytes:
    """Write values as an Arrow stream of one column."""
    table = pyarrow.table({"value": values})
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def decode_values(data: bytes) -> Iterator[Any]:
    with pyarrow.ipc.open_stream(data) as reader:
        for batch in reader:
            yield from batch.column(0).to_pylist()
