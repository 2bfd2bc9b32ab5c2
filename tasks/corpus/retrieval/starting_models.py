"""Models that a student may start from, ranked by what their cards say and by their size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from tasks.corpus.retrieval.catalogue import Entry, rank, read_catalogue


class ModelCard(Entry):
    uri: str
    """A folder beside the catalogue, a hub id, or an s3:// URI."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    task: str = "text-generation"
    """As the hub calls it; a student is a model of text generation."""
    num_parameters: Annotated[int, Field(gt=0)]
    tokenizer: str | None = None
    """A name that models share whose tokenizers are the same."""

    @property
    def searched(self) -> str:
        return "\n".join([self.name, self.description, *self.languages])


class Candidate(NamedTuple):
    card: ModelCard
    score: float
    """BM25 of the card for the task."""
    model: str
    """As a recipe names it."""
    same_tokenizer: bool | None
    """As the teacher's; None where the catalogue does not say. Losses that compare logits need
    it."""


def propose_students(
    catalogue: Path, query: str, teacher: str, max_parameters: int | None = None
) -> list[Candidate]:
    """Return the models that a student may start from, the one proposed first.

    The task decides; among equals a tokenizer as the teacher's, then the greater size.

    Args:
        query: The task in words.
        teacher: As the recipe names it. If it is in the catalogue, smaller models alone are
            proposed, and their tokenizers are compared with its.
        max_parameters: Of a model; None sets no other limit.

    Raises:
        ValueError: the catalogue is wrong, or none of its models is small enough.
    """
    cards = read_catalogue(catalogue, ModelCard)
    places = {card.name: model_place(catalogue, card) for card in cards}
    taught = next((card for card in cards if teacher in (places[card.name], card.name)), None)
    limit = min(
        max_parameters or float("inf"), taught.num_parameters - 1 if taught else float("inf")
    )
    writers = [card for card in cards if card.task == "text-generation"]
    small = [card for card in writers if card.num_parameters <= limit]
    if not small:
        sizes = sorted(card.num_parameters for card in writers)
        smallest = f"the smallest has {sizes[0]:,}" if sizes else "there is none of any size"
        raise ValueError(
            f"{catalogue}: no model of text-generation has at most {limit:,} parameters; {smallest}"
        )
    ranked, _ = rank(small, query)
    candidates = [
        Candidate(card, score, places[card.name], compare_tokenizers(card, taught))
        for score, card in ranked
    ]
    return sorted(
        candidates, key=lambda c: (-c.score, not c.same_tokenizer, -c.card.num_parameters)
    )


def model_place(catalogue: Path, card: ModelCard) -> str:
    """Return the absolute folder where the URI leads to one beside the catalogue, else the URI."""
    folder = catalogue.parent / card.uri
    return str(folder.resolve()) if folder.is_dir() else card.uri


def compare_tokenizers(card: ModelCard, teacher: ModelCard | None) -> bool | None:
    if teacher is None or teacher.tokenizer is None or card.tokenizer is None:
        return None
    return card.tokenizer == teacher.tokenizer
