"""What a model writes: greedy continuations of held-out text, and its next-token distributions.

Which prompts and places is decided by the text, its tokenizer and the seed alone, so what models of
one recipe write can be put side by side.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tasks.corpus.decoding import Writer, sample
from tasks.corpus.generation import Prompt
from tasks.corpus.generators.teacher import decode_after, load_writer
from tasks.corpus.text import Document, tokenize_file
from tasks.evaluate.sampled import Continuation, NextTokens, RankedToken

NUM_PROMPTS = 4
PROMPT_TOKENS = 32
NEW_TOKENS = 48
NUM_PLACES = 10
NUM_TOKENS = 20
SHOWN_TOKENS = 16
"""Of the text before a place."""


class Place(NamedTuple):
    """A token of a held-out document, and what comes before it."""

    before: list[int]
    actual: int


def choose_prompts(documents: list[Document], window: int, seed: int) -> list[list[int]]:
    """Return the ids that continuations begin with: the first PROMPT_TOKENS of a document, or half
    of a shorter one; of a chat what stands before the assistant's first turn, at most a window."""
    prompts = []
    for document in choose_documents(documents, NUM_PROMPTS, seed):
        first_learned = document.loss_mask.index(1)
        length = first_learned or min(PROMPT_TOKENS, len(document.ids) // 2)
        prompts.append(document.ids[max(0, length - window) : length])
    return prompts


def choose_places(documents: list[Document], window: int, seed: int) -> list[Place]:
    """Return one place in each of NUM_PLACES documents, among the tokens that count, with at most a
    window of its document before it."""
    rng = random.Random(seed)
    places = []
    for document in choose_documents(documents, NUM_PLACES, seed):
        learned = [at for at, counts in enumerate(document.loss_mask) if counts and at > 0]
        at = rng.choice(learned)
        places.append(Place(document.ids[max(0, at - window) : at], document.ids[at]))
    return places


def choose_documents(documents: list[Document], count: int, seed: int) -> list[Document]:
    usable = [document for document in documents if any(document.loss_mask[1:])]
    return random.Random(seed).sample(usable, min(count, len(usable)))


class Sampler(NamedTuple):
    """A worker's state."""

    writer: Writer
    prompts: list[list[int]]
    places: list[Place]


def build_sampler(
    localize: Callable[[str], Path],
    model_uri: str,
    text_uri: str,
    window: int,
    seed: int,
    trust_remote_code: bool,
) -> Sampler:
    writer = load_writer(localize, model_uri, trust_remote_code, dtype="auto")
    documents = tokenize_file(localize(text_uri), writer.tokenizer)
    return Sampler(
        writer,
        choose_prompts(documents, window, seed),
        choose_places(documents, window, seed),
    )


def write_on(writer: Writer, ids: list[int]) -> Continuation:
    """Continue a prompt greedily, by NEW_TOKENS or to the end of the model's context."""
    context = getattr(writer.model.config.get_text_config(), "max_position_embeddings", None)
    room = NEW_TOKENS if context is None else min(NEW_TOKENS, max(1, context - len(ids)))
    greedy = Prompt(text="", seed=0, max_tokens=room, temperature=0.0)
    (written,) = sample(writer, [(ids, greedy)])
    return Continuation(
        prompt=writer.tokenizer.decode(ids, skip_special_tokens=True),
        text=decode_after(writer.tokenizer, ids, written.ids),
        ended=written.finished,
    )


@torch.inference_mode()
def rank_next(writer: Writer, place: Place, temperatures: list[float]) -> NextTokens:
    """Return the NUM_TOKENS likeliest next tokens, with softmax(z / T) at each temperature."""
    ids_1S = torch.tensor([place.before], device=writer.model.device)
    logits_V = writer.model(input_ids=ids_1S, logits_to_keep=1).logits[0, -1].double().cpu()
    ranked = logits_V.topk(min(NUM_TOKENS, logits_V.numel())).indices
    probabilities = torch.stack([(logits_V / t).softmax(-1)[ranked] for t in temperatures], dim=1)
    shown = place.before[-SHOWN_TOKENS:]
    return NextTokens(
        context=writer.tokenizer.decode(shown, skip_special_tokens=True),
        actual=spell(writer.tokenizer, shown, place.actual),
        ranked=[
            RankedToken(
                text=spell(writer.tokenizer, shown, token),
                probabilities=[round(p, 6) for p in row],
            )
            for token, row in zip(ranked.tolist(), probabilities.tolist(), strict=True)
        ],
    )


def spell(tokenizer: Any, before: list[int], token: int) -> str:
    """Return the text that a token adds; where it adds none, as a special token or a part of a
    character does, the vocabulary's name of it."""
    text = decode_after(tokenizer, before, [token])
    if text and "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    return tokenizer.convert_ids_to_tokens(token) or f"#{token}"  # beyond the vocabulary: padding
