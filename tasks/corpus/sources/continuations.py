"""Texts that a model goes on with from the beginnings of others.

The beginnings keep what is written on the user's subjects, where text sampled from nothing covers
whatever the model believes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.generation import Prompt, complete_each, provenance
from tasks.corpus.seeds import read_seeds
from tasks.distill.blocks import derive_seed
from tasks.plugins import Uri

USES = ("generator",)


def read(
    context: CorpusContext,
    *,
    seeds: Uri,
    num_words: Annotated[int, Field(gt=0)] = 16,
    per_seed: Annotated[int, Field(gt=0)] = 1,
    max_seeds: int | None = None,
    max_tokens: Annotated[int, Field(gt=0)] = 256,
    temperature: Annotated[float, Field(ge=0)] = 1.0,
    licence: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield beginnings with what a model wrote after them, up to its end or `max_tokens`.

    Args:
        num_words: Of a seed's text that its beginning has.
        per_seed: Continuations of each beginning.
        licence: Of the rows; None keeps each seed's own.
    """
    found = islice(read_seeds(context, seeds), max_seeds)
    asked = (
        (
            seed,
            Prompt(first_words(seed["text"], num_words), number, max_tokens, temperature, raw=True),
        )
        for index, seed in enumerate(found)
        for number in (derive_seed(context.seed, index, copy) for copy in range(per_seed))
    )
    for seed, prompt, completion in complete_each(context, asked):
        if completion.text.strip():
            about = provenance(context, prompt, licence or seed.get("licence"))
            yield {"text": prompt.text + completion.text} | about
        else:
            context.refused["empty"] += 1


def first_words(text: str, number: int) -> str:
    """Return a text up to the end of its word of that number, with its spaces as they are."""
    match = re.match(rf"\s*(?:\S+\s+){{0,{number - 1}}}\S+", text)
    assert match, "a text has words"
    return match[0]
