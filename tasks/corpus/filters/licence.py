"""Drop a row whose licence the recipe forbids."""

from functools import partial

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.rows import Row

USES = ()


def keep(context: CorpusContext, *, forbid: str) -> Filter:
    """Keep rows under other licences than those forbidden.

    Args:
        forbid: Licences as rows name them, with commas between, in any case; `unknown` stands for
            rows that name none.

    Raises:
        ValueError: none is named.
    """
    forbidden = {name.strip().lower() for name in forbid.split(",") if name.strip()}
    if not forbidden:
        raise ValueError(f"licence: forbid: expected licences such as GPL-3.0, unknown, {forbid=}")
    return Filter(partial(find_forbidden, forbidden=forbidden), iter)


def find_forbidden(state: None, rows: list[Row], *, forbidden: set[str]) -> list[str | None]:
    licences = [row["licence"] or "unknown" for row in rows]
    return [
        f"licence {name} is forbidden" if name.lower() in forbidden else None for name in licences
    ]
