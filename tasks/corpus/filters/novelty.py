"""Drop a row whose input says too much of what a row kept before it says, by ROUGE-L.

Reference: Wang et al. 2022, Self-Instruct, arXiv 2212.10560, section 2.2.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.novelty import NoveltyPool
from tasks.corpus.rows import Row
from tasks.corpus.words import input_texts

USES = ()


def keep(
    context: CorpusContext, *, max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.7
) -> Filter:
    """Keep rows whose ROUGE-L with every row kept so far is below `max_similarity`.

    For short rows, such as generated inputs: all kept ones are in memory, and the work grows with
    the square of their number. minhash_dedup is for documents.
    """
    return Filter(join_inputs, partial(find_stale, max_similarity=max_similarity))


def join_inputs(state: None, rows: list[Row]) -> list[str]:
    return ["\n".join(input_texts(row)) for row in rows]


def find_stale(texts: Iterable[Any], *, max_similarity: float) -> Iterator[str | None]:
    pool = NoveltyPool([], max_similarity)
    for text in texts:
        yield None if pool.admit(text) else f"novelty: ROUGE-L of {max_similarity} or more"
