"""The recipe's latencies: prefill, decode and memory of one worker at stated batch sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tasks.corpus.text import tokenize_row
from tasks.evaluate.speed import SPEED_REPEATS, describe_place, measure_latency
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.models.folder import load_config
from tasks.models.model_kind import head_kind
from tasks.quality_records import Latency, LatencyRow
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

FIRST_LINES = 256
"""Of the held-out file, whose tokens are the prompts."""


class Subject(NamedTuple):
    """A worker's state."""

    model: Any
    ids: torch.Tensor
    """[num_tokens] of the held-out text."""


def measure_latencies(
    space: StageSpace, options: dict[str, Any], model: ModelRef, text: TextRef
) -> Latency:
    """Time a model at each batch size, on a worker that does nothing else, from small to large.

    Raises:
        ValueError: prompt and continuation are longer than the model's positions.
    """
    asked = options["latency"]
    writes = head_kind(model.architecture) == "causal_lm"
    prompt_tokens, new_tokens = asked["prompt_tokens"], asked["new_tokens"] if writes else None
    length = prompt_tokens + (new_tokens or 0)
    positions = load_config(space.local(model.uri)).get("max_position_embeddings")
    if positions is not None and length > positions:
        raise ValueError(
            f"evaluation.latency: prompt_tokens and new_tokens come to {length}, the model has "
            f"{positions} positions"
        )
    trusted = options["trust_remote_code"]
    state = partial(load_subject, space.localizer, model.uri, text.uri, trusted)
    sizes = sorted(set(asked["batch_sizes"]))
    units = [(size, prompt_tokens, new_tokens) for size in sizes]
    (result,) = space.compute_units(time_units, [units], state, group="latency", num_workers=1)
    measured = json.loads(result)
    place = measured["place"]
    decode = f", then {new_tokens} tokens greedily from the cache, median step" if writes else ""
    return Latency(
        rows=[LatencyRow(**row) for row in measured["rows"]],
        protocol=(
            f"prefill of {prompt_tokens} tokens, median of {SPEED_REPEATS}{decode}; peak memory "
            f"{'of tensors on the GPU' if place['device'] == 'cuda' else 'resident'}; "
            f"{place['dtype']} on {place['device']}, {place['threads']} thread(s)"
        ),
    )


def load_subject(
    localize: Callable[[str], Path], model_uri: str, text_uri: str, trust_remote_code: bool
) -> Subject:
    folder = localize(model_uri)
    tokenizer = load_tokenizer(folder)
    with localize(text_uri).open(encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(FIRST_LINES), strict=False) if line.strip()]
    words = [" ".join(strings(json.loads(line))) for line in lines]
    ids = [i for text in words for i in tokenize_row({"text": text}, tokenizer).ids]
    return Subject(load_model(folder, "auto", trust_remote_code), torch.tensor(ids))


def strings(value: Any) -> list[str]:
    """Return all text in a row, whatever its columns."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in strings(part)]


def time_units(subject: Subject, units: list[tuple[int, int, int | None]]) -> bytes:
    """Return JSON {rows, place}; each unit is batch size, prompt tokens and new tokens."""
    rows = [measure_latency(subject.model, subject.ids, *unit) for unit in units]
    return json.dumps({"rows": rows, "place": describe_place(subject.model)}).encode()
