"""Passages of a text collection that are about the task, ranked by BM25."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.retrieval.documents import Document, cut_passages, find_documents, read_documents
from tasks.corpus.retrieval.languages import detect_language
from tasks.corpus.retrieval.queries import describe_words, task_query
from tasks.corpus.retrieval.quotas import read_quotas, share_out
from tasks.corpus.retrieval.ranking import Ranking
from tasks.corpus.words import split_words
from tasks.errors import CorpusError
from tasks.plugins import DataUri

USES = ()


class Passage(NamedTuple):
    text: str
    document: Document


def read(
    context: CorpusContext,
    *,
    path: DataUri,
    num_rows: Annotated[int, Field(gt=0)],
    passage_words: Annotated[int, Field(gt=0)] = 200,
    query: str | None = None,
    quotas: str | None = None,
    min_score: Annotated[float, Field(ge=0)] = 0.0,
    licence: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the passages that fit the task best, the best first.

    The text is read twice, so that two bytes a word are held, and the passages chosen.

    Args:
        path: A JSONL file of rows, or a folder of .txt, .md and .jsonl.
        num_rows: At most; fewer where fewer score above `min_score`.
        passage_words: At most, in one passage.
        query: Words to look for beside those of the task's instruction and examples.
        quotas: Shares of `num_rows` by language, `en=0.7,de=0.3`; other languages get none. A row
            may state its `language`; else it is found by its words.
        min_score: BM25 that a passage must exceed; 0 asks for one of the words.
        licence: Of all rows that do not state their own.

    Raises:
        CorpusError: nothing to look for, or nothing found; it says what was searched.
    """
    shares = read_quotas(quotas) if quotas else None
    ranking = Ranking(task_query(context.task, query))
    files = find_documents(context.local(path))
    languages: list[str] = []
    for passage in read_passages(files, passage_words):
        if passage is None:
            context.refused["chat, where passages of text were looked for"] += 1
            continue
        found = split_words(passage.text)
        ranking.add(found)
        if shares:
            languages.append(passage.document.language or detect_language(found))
    scores = ranking.scores()
    order = [int(n) for n in np.argsort(-scores, kind="stable") if scores[n] > min_score]
    if not order:
        best = f"{scores.max():.2f}" if len(scores) else "none"
        raise CorpusError(
            f"passages: none of {len(ranking)} passages in {len(files)} files of {path} scores "
            f"above min_score: {min_score} for {describe_words(ranking.words)}; the best score is "
            f"{best}",
            "give a `query` in the text's own words, another path, or a lower min_score",
        )
    chosen = order[:num_rows]
    if shares:
        chosen = take_shares(context, order, languages, share_out(shares, num_rows))
    texts = pick(read_passages(files, passage_words), set(chosen))
    for number in chosen:
        text, document = texts[number]
        yield {"text": text, "licence": document.licence or licence}


def read_passages(files: list[Path], num_words: int) -> Iterator[Passage | None]:
    for file in files:
        for document in read_documents(file):
            if document is None:
                yield None
                continue
            for text in cut_passages(document.text, num_words):
                yield Passage(text, document)


def pick(passages: Iterator[Passage | None], numbers: set[int]) -> dict[int, Passage]:
    """Return the passages with these numbers; what is none has no number."""
    found = (passage for passage in passages if passage is not None)
    return {n: passage for n, passage in enumerate(found) if n in numbers}


def take_shares(
    context: CorpusContext, order: list[int], languages: list[str], wanted: dict[str, int]
) -> list[int]:
    """Return the first of `order` in each language, as many as wanted, in that order.

    Raises:
        CorpusError: there are passages, and none of them in a language wanted.
    """
    left = dict(wanted)
    chosen = []
    for number in order:
        if left.get(languages[number], 0):
            left[languages[number]] -= 1
            chosen.append(number)
    if not chosen:
        met = sorted({languages[number] for number in order})
        raise CorpusError(
            f"passages: of the {len(order)} that match, none is in {sorted(wanted)}; they are in "
            f"{met}",
            "change quotas, or give rows a `language`",
        )
    context.refused.update({f"wanted in {name}, and not found": n for name, n in left.items() if n})
    return chosen
