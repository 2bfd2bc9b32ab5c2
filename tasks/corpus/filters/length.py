"""Drop a document that is too short to teach anything, or too long to be one."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field


def keep(
    texts: Iterable[str],
    *,
    min_characters: Annotated[int, Field(ge=0)] = 1,
    max_characters: int | None = None,
) -> Iterator[str | None]:
    """Yield for each text None where it is kept, or why it is dropped."""
    for text in texts:
        if len(text) < min_characters:
            yield f"shorter than {min_characters} characters"
        elif max_characters is not None and len(text) > max_characters:
            yield f"longer than {max_characters} characters"
        else:
            yield None
