"""Texts said in other words by a model that follows instructions; their outputs stay right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.generation import Prompt, complete_each, provenance
from tasks.corpus.novelty import rouge_l
from tasks.corpus.seeds import read_seeds
from tasks.distill.blocks import derive_seed
from tasks.plugins import Uri

USES = ("generator",)

STOPS = ("\n###", "\nText:")


def read(
    context: CorpusContext,
    *,
    seeds: Uri,
    instruction: str = "Say the following text in other words. Keep what it means.",
    per_seed: Annotated[int, Field(gt=0)] = 1,
    max_seeds: int | None = None,
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.9,
    max_tokens: Annotated[int, Field(gt=0)] = 256,
    temperature: Annotated[float, Field(ge=0)] = 1.0,
    licence: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield each seed's text in other words, with the seed's second text and output.

    Args:
        per_seed: Rewrites of each text.
        max_similarity: ROUGE-L with its text from which on a rewrite counts as a copy.
        licence: Of the rows; None keeps each seed's own.
    """
    found = islice(read_seeds(context, seeds), max_seeds)
    asked = (
        (seed, Prompt(text, number, max_tokens, temperature, STOPS))
        for index, seed in enumerate(found)
        for text in [f"{instruction}\n\nText: {seed['text']}\n\nIn other words:"]
        for number in (derive_seed(context.seed, index, copy) for copy in range(per_seed))
    )
    for seed, prompt, completion in complete_each(context, asked):
        text = completion.text.strip()
        if not completion.finished:
            context.refused["cut off at max_tokens"] += 1
        elif not text:
            context.refused["empty"] += 1
        elif rouge_l(text, seed["text"]) >= max_similarity:
            context.refused["a copy of its seed"] += 1
        else:
            about = provenance(context, prompt, licence or seed.get("licence"))
            kept = {name: seed[name] for name in ("text_pair", "output", "label") if name in seed}
            yield kept | {"text": text} | about
