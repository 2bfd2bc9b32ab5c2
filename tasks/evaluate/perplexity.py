"""Held-out nats/token of a language model, with the protocol that makes two figures comparable.

Documents are tokenised one by one, each begun with BOS, joined, and cut into windows that do not
know of documents. Each window scores its last `stride` tokens (the first one all but its first
token), given what stands before them in the window. A token's loss is booked to its document, so
that a gate can resample documents.

A masked language model has no next token: of each window it scores the tokens that are masked,
15% of them, the same for every model with the same tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from tasks.corpus.text import tokenize_file
from tasks.errors import CheckpointError, CorpusError
from tasks.evaluate.held_out import HeldOut
from tasks.evaluate.speed import measure_prefill
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

WINDOWS_PER_UNIT = 32
PROBE_WINDOWS = 4
"""Windows kept with their loss, for the load gate to hold a fresh process against."""
MASKED = 0.15
"""Of the tokens; Devlin et al. 2019, arXiv 1810.04805, section 3.1."""


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
    mask_id: int | None
    """Of a masked language model; None where the next token is scored."""


def score_text(
    space: StageSpace, options: dict[str, Any], model: ModelRef, text: TextRef, masked: bool = False
) -> HeldOut:
    """Score a model on a text, by document.

    Args:
        masked: Whether it is a masked language model.

    Raises:
        CorpusError: the text is shorter than two tokens.
    """
    window = options["window"]
    stride = window if masked else options["stride"]
    tokenizer = load_tokenizer(space.local(model.uri))
    documents = tokenize_file(space.local(text.uri), tokenizer)
    windows = cut_windows(sum(len(d.ids) for d in documents), window, stride)
    trusted = options["trust_remote_code"]
    state = partial(
        build_scorer, space.localizer, model.uri, text.uri, window, stride, trusted, masked
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
    scored = f"{MASKED:.0%} of tokens masked" if masked else f"stride {stride}"
    return HeldOut(
        nats=nats,
        tokens=tokens,
        protocol=f"windows of {window}, {scored}, documents joined with BOS",
        probe=measured["probe"],
        prefill=measured["prefill"],
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
    masked: bool,
) -> Scorer:
    folder = localize(model_uri)
    tokenizer = load_tokenizer(folder)
    documents = tokenize_file(localize(text_uri), tokenizer)
    if masked and tokenizer.mask_token_id is None:
        raise CheckpointError(f"{folder}: a masked language model whose tokenizer has no mask")
    lengths = torch.tensor([len(d.ids) for d in documents])
    ids = torch.tensor([i for d in documents for i in d.ids])
    return Scorer(
        model=load_model(folder, "auto", trust_remote_code),
        ids=ids,
        learned=torch.tensor([m for d in documents for m in d.loss_mask], dtype=torch.bool),
        document=torch.repeat_interleave(torch.arange(len(documents)), lengths),
        windows=cut_windows(len(ids), window, stride),
        mask_id=tokenizer.mask_token_id if masked else None,
    )


def score_windows(scorer: Scorer, unit: int) -> bytes:
    """Score one unit's windows; return JSON {document: [summed nats, tokens]}."""
    sums: dict[int, list[float]] = {}
    first = unit * WINDOWS_PER_UNIT
    for window in scorer.windows[first : first + WINDOWS_PER_UNIT]:
        if scorer.mask_id is None:
            span = torch.arange(window.score_from, window.stop)
            nats = window_nats(scorer, window)[window.score_from - window.start - 1 :]
        else:
            span, nats = masked_nats(scorer, window, scorer.mask_id)
        learned = scorer.learned[span]
        documents = scorer.document[span][learned]
        for document, value in zip(documents.tolist(), nats[learned].tolist(), strict=True):
            entry = sums.setdefault(document, [0.0, 0])
            entry[0] += value
            entry[1] += 1
    return json.dumps(sums).encode()


def window_nats(scorer: Scorer, window: Window) -> torch.Tensor:
    """Return the loss of each token of a window but its first, [length - 1] fp64."""
    ids = scorer.ids[window.start : window.stop].to(scorer.model.device)
    with torch.inference_mode():
        logits_SV = scorer.model(input_ids=ids[None]).logits[0, :-1].float()
        return F.cross_entropy(logits_SV, ids[1:], reduction="none").cpu().double()


def masked_nats(scorer: Scorer, window: Window, mask_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask a window's share of tokens; return their positions in the text and their losses.

    At least one is masked, and which are depends on the window's place alone.
    """
    ids = scorer.ids[window.start : window.stop]
    chosen = torch.randperm(len(ids), generator=torch.Generator().manual_seed(window.start))
    places = chosen[: max(1, round(MASKED * len(ids)))].sort().values
    masked = ids.clone()
    masked[places] = mask_id
    with torch.inference_mode():
        logits_SV = scorer.model(input_ids=masked[None].to(scorer.model.device)).logits[0]
        logits_PV = logits_SV[places.to(logits_SV.device)].float().cpu()
        nats = F.cross_entropy(logits_PV, ids[places], reduction="none")
    return window.start + places, nats.double()


def measure_alone(scorer: Scorer, window: int) -> bytes:
    """Time full batches and score the probe, while no other unit of this stage runs.

    Returns:
        JSON {prefill, probe}.
    """
    probed = [scorer.ids[w.start : w.stop] for w in scorer.windows[:PROBE_WINDOWS]]
    probe: dict[str, Any] = {"ids": [ids.tolist() for ids in probed]}
    if scorer.mask_id is None:
        nats = torch.cat([window_nats(scorer, w) for w in scorer.windows[:PROBE_WINDOWS]])
        probe["nats_per_token"] = float(nats.mean())
    else:
        with torch.inference_mode():
            rows = [ids[None].to(scorer.model.device) for ids in probed[:1]]
            logits = [scorer.model(input_ids=row).logits.float().flatten() for row in rows]
        probe = {"ids": [row[0].tolist() for row in rows], "logits": [p.tolist() for p in logits]}
    prefill = measure_prefill(scorer.model, scorer.ids, window)
    return json.dumps({"prefill": prefill, "probe": probe}).encode()
