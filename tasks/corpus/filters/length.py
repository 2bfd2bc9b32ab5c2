"""Drop a row that is too short to teach anything, or too long to be one."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row

USES = ()


def keep(
    context: CorpusContext,
    *,
    min_characters: Annotated[int, Field(ge=0)] = 1,
    max_characters: int | None = None,
) -> Filter:
    """Keep rows whose text has from `min_characters` to `max_characters`."""
    return Filter(
        count_characters,
        partial(judge, min_characters=min_characters, max_characters=max_characters),
    )


def count_characters(state: None, rows: list[Row]) -> list[int]:
    return [len(row["text"]) for row in rows]


def judge(
    lengths: Iterable[int], *, min_characters: int, max_characters: int | None
) -> Iterator[str | None]:
    for length in lengths:
        if length < min_characters:
            yield f"shorter than {min_characters} characters"
        elif max_characters is not None and length > max_characters:
            yield f"longer than {max_characters} characters"
        else:
            yield None
