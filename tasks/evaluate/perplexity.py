"""Held-out nats/token, with the protocol that makes two figures comparable, and prefill speed.

Documents are tokenised one by one, each begun with BOS, joined, and cut into windows that do not
know of documents. Each window scores its last `stride` tokens (the first one all but its first
token), given what stands before them in the window. A token's loss is booked to its document, so
that a gate can resample documents.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from tasks.corpus.text import tokenize_file
from tasks.digests import digest_folder
from tasks.errors import CorpusError
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.records import Metrics, ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage import StageSpace

WINDOWS_PER_UNIT = 32
SPEED_BATCH = 8
SPEED_REPEATS = 7
PROBE_WINDOWS = 4
"""Windows kept with their loss, for the load gate to hold a fresh process against."""


class Window(NamedTuple):
    start: int
    stop: int
    score_from: int
    """Position of the first token that this window scores; the one before predicts it."""


class Scorer(NamedTuple):
    """A worker's state: the model and the whole held-out text."""

    model: Any
    ids: torch.Tensor
    """[num_tokens]"""
    learned: torch.Tensor
    """[num_tokens] bool: tokens that are scored (of a chat, the assistant's)."""
    document: torch.Tensor
    """[num_tokens] index of each token's document."""
    windows: list[Window]
    device: str


def evaluate_model(
    space: StageSpace, options: dict[str, Any], *, model: ModelRef, text: TextRef
) -> Metrics:
    """Score a model on a text.

    Writes `documents.json`, summed nats and tokens per document, and `probe.json`, the ids of a
    few windows and the model's nats/token on them.

    Raises:
        CorpusError: the text is shorter than two tokens.
    """
    window, stride = options["window"], options["stride"]
    tokenizer = load_tokenizer(space.local(model.uri))
    documents = tokenize_file(space.local(text.uri), tokenizer)
    windows = cut_windows(sum(len(d.ids) for d in documents), window, stride)
    state = partial(
        build_scorer,
        space.localizer,
        model.uri,
        text.uri,
        window,
        stride,
        options["trust_remote_code"],
    )
    num_units = math.ceil(len(windows) / WINDOWS_PER_UNIT)
    results = space.compute_units(score_windows, list(range(num_units)), state, group="windows")

    nats, tokens = [0.0] * len(documents), [0] * len(documents)
    for result in results:
        for document, (document_nats, document_tokens) in json.loads(result).items():
            nats[int(document)] += document_nats
            tokens[int(document)] += document_tokens
    (alone,) = space.compute_units(measure_alone, [window], state, group="alone", num_workers=1)
    measured = json.loads(alone)

    (space.out / "documents.json").write_text(json.dumps({"nats": nats, "tokens": tokens}))
    (space.out / "probe.json").write_text(json.dumps(measured["probe"]))
    mean = sum(nats) / sum(tokens)
    return Metrics(
        nats_per_token=mean,
        perplexity=math.exp(min(mean, 700.0)),
        num_tokens=sum(tokens),
        num_documents=len(documents),
        tokens_per_s=measured["tokens_per_s"],
        protocol=(
            f"windows of {window}, stride {stride}, documents joined with BOS, "
            f"text {text.digest[:12]}, {measured['dtype']} on {measured['device']}"
        ),
        speed_protocol=(
            f"prefill of {SPEED_BATCH} x {window} tokens, median of {SPEED_REPEATS}, "
            f"{measured['dtype']} on {measured['device']}, {measured['threads']} thread(s)"
        ),
        documents_uri=space.output_uri("documents.json"),
        digest=digest_folder(space.out),
    )


def cut_windows(num_tokens: int, window: int, stride: int) -> list[Window]:
    """Cover every token but the first of each unoverlapped window, none of them twice.

    With stride = window the windows stand side by side, and the first token of each has nothing
    before it. With a smaller stride a window repeats `window - stride` tokens as context.
    """
    if num_tokens < 2:
        raise CorpusError(f"the evaluation text has {num_tokens} tokens, at least 2 are needed")
    windows = [Window(0, min(window, num_tokens), 1)]
    while windows[-1].stop < num_tokens:
        scored_to = windows[-1].stop
        stop = min(scored_to + stride, num_tokens)
        # Context reaches back so that the window is full; side by side there is none.
        start = max(0, scored_to + stride - window)
        score_from = max(scored_to, start + 1)
        if score_from < stop:
            windows.append(Window(start, stop, score_from))
        else:
            break
    return windows


def build_scorer(
    localize: Callable[[str], Path],
    model_uri: str,
    text_uri: str,
    window: int,
    stride: int,
    trust_remote_code: bool,
) -> Scorer:
    folder = localize(model_uri)
    documents = tokenize_file(localize(text_uri), load_tokenizer(folder))
    model = load_model(folder, "auto", trust_remote_code)
    lengths = torch.tensor([len(d.ids) for d in documents])
    ids = torch.tensor([i for d in documents for i in d.ids])
    return Scorer(
        model=model,
        ids=ids,
        learned=torch.tensor([m for d in documents for m in d.loss_mask], dtype=torch.bool),
        document=torch.repeat_interleave(torch.arange(len(documents)), lengths),
        windows=cut_windows(len(ids), window, stride),
        device=str(model.device.type),
    )


def score_windows(scorer: Scorer, unit: int) -> bytes:
    """Score one unit's windows; return JSON {document: [summed nats, tokens]}."""
    sums: dict[int, list[float]] = {}
    first = unit * WINDOWS_PER_UNIT
    for window in scorer.windows[first : first + WINDOWS_PER_UNIT]:
        span = slice(window.score_from, window.stop)
        learned = scorer.learned[span]
        scored = window_nats(scorer, window)[window.score_from - window.start - 1 :][learned]
        for document, value in zip(
            scorer.document[span][learned].tolist(), scored.tolist(), strict=True
        ):
            entry = sums.setdefault(document, [0.0, 0])
            entry[0] += value
            entry[1] += 1
    return json.dumps(sums).encode()


def window_nats(scorer: Scorer, window: Window) -> torch.Tensor:
    """Return the loss of each token of a window but its first, [length - 1] fp64."""
    ids = scorer.ids[window.start : window.stop].to(scorer.device)
    with torch.inference_mode():
        logits_SV = scorer.model(input_ids=ids[None]).logits[0, :-1].float()
        return F.cross_entropy(logits_SV, ids[1:], reduction="none").cpu().double()


def measure_alone(scorer: Scorer, window: int) -> bytes:
    """Time full batches and score the probe, while no other unit of this stage runs.

    Returns:
        JSON with tokens_per_s, where it ran, and the probe.
    """
    needed = SPEED_BATCH * window
    ids = scorer.ids.repeat(math.ceil(needed / len(scorer.ids)))[:needed]
    batch = ids.view(SPEED_BATCH, window).to(scorer.device)
    seconds = []
    with torch.inference_mode():
        for _ in range(SPEED_REPEATS + 1):
            began = time.perf_counter()
            float(scorer.model(input_ids=batch).logits[0, 0, 0])  # waits for the device
            seconds.append(time.perf_counter() - began)
    probed = scorer.windows[:PROBE_WINDOWS]
    nats = torch.cat([window_nats(scorer, w) for w in probed])
    return json.dumps(
        {
            "tokens_per_s": round(needed / statistics.median(seconds[1:]), 1),
            "dtype": str(scorer.model.dtype).removeprefix("torch."),
            "device": scorer.device,
            "threads": torch.get_num_threads(),
            "probe": {
                "ids": [scorer.ids[w.start : w.stop].tolist() for w in probed],
                "nats_per_token": float(nats.mean()),
            },
        }
    ).encode()
