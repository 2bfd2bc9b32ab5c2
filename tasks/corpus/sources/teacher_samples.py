"""Text that the teacher itself writes, from nothing but the mark that begins a document.

Sampled text covers what the teacher believes, which is what a student is to learn; it needs no
prompts. Generation runs on through the end of a document into the next, as the teacher was
trained on packed text, so every unit of work yields exactly as many tokens as it was sized for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.generation import name_model
from tasks.corpus.text import bos_id
from tasks.errors import CorpusError
from tasks.models.checkpoint import load_model, load_tokenizer

USES = ("teacher",)


class Sampler(NamedTuple):
    """A worker's state."""

    model: Any
    tokenizer: Any
    begin: int


class Batch(NamedTuple):
    """One unit of work."""

    seed: int
    num_samples: int
    num_tokens: int
    temperature: float


def read(
    context: CorpusContext,
    *,
    num_tokens: Annotated[int, Field(gt=0)],
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    sample_tokens: Annotated[int, Field(gt=1)] = 256,
    batch_samples: Annotated[int, Field(gt=0)] = 32,
    licence: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the documents in about `num_tokens` sampled tokens, rounded up to whole batches.

    Args:
        licence: Of what the teacher writes.
    """
    num_batches = -(-num_tokens // (batch_samples * sample_tokens))
    units = [
        Batch(context.seed * 1_000_003 + index, batch_samples, sample_tokens, temperature)
        for index in range(num_batches)
    ]
    teacher = context.teacher
    assert teacher is not None
    state = partial(build_sampler, context.space.localizer, teacher.uri, context.trust_remote_code)
    results = context.space.stream_units(sample_batch, units, state, group=context.name)
    for unit, texts in zip(units, results, strict=True):
        for text in json.loads(texts):
            yield {
                "text": text,
                "generator": name_model(teacher),
                "seed": unit.seed,
                "licence": licence,
            }


def build_sampler(
    localize: Callable[[str], Path], teacher_uri: str, trust_remote_code: bool
) -> Sampler:
    teacher = localize(teacher_uri)
    tokenizer = load_tokenizer(teacher)
    begin = bos_id(tokenizer)
    if begin is None:
        raise CorpusError(
            "teacher_samples: the teacher's tokenizer has neither BOS nor EOS to begin with",
            "use local_text, or a teacher whose tokenizer marks where a document begins",
        )
    return Sampler(load_model(teacher, "float32", trust_remote_code), tokenizer, begin)


def sample_batch(sampler: Sampler, batch: Batch) -> bytes:
    """Sample sequences and return their documents' texts as a JSON list."""
    device = sampler.model.device
    generator = torch.Generator(device).manual_seed(batch.seed)
    ids_BS = torch.full((batch.num_samples, 1), sampler.begin, device=device)
    cache = None
    with torch.inference_mode():
        for _ in range(batch.num_tokens - 1):
            out = sampler.model(
                input_ids=ids_BS[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = out.past_key_values
            probs_BV = (out.logits[:, -1].float() / batch.temperature).softmax(-1)
            next_B1 = torch.multinomial(probs_BV, 1, generator=generator)
            ids_BS = torch.cat([ids_BS, next_B1], dim=1)
    documents = [d for row in ids_BS.tolist() for d in split_at(row, sampler.begin)]
    texts = sampler.tokenizer.batch_decode(documents, skip_special_tokens=True)
    return json.dumps([text for text in texts if text.strip()]).encode()


def split_at(ids: list[int], mark: int) -> list[list[int]]:
    """Cut a sequence at a mark, which belongs to no part; empty parts are left out."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == mark:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]
