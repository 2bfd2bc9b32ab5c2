"""The teacher's opinion of rows: a worker's model and tokenizer, and how likely it finds tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tasks.corpus.context import CorpusContext
from tasks.models.checkpoint import load_model, load_tokenizer


class Scorer(NamedTuple):
    """A worker's state."""

    model: Any
    tokenizer: Any


def scorer_state(context: CorpusContext) -> Callable[[], Scorer]:
    """Return what loads the teacher, once a worker."""
    teacher = context.teacher
    assert teacher is not None
    return partial(load_scorer, context.space.localizer, teacher.uri, context.trust_remote_code)


def load_scorer(
    localize: Callable[[str], Path], teacher_uri: str, trust_remote_code: bool
) -> Scorer:
    folder = localize(teacher_uri)
    return Scorer(load_model(folder, "float32", trust_remote_code), load_tokenizer(folder))


@torch.inference_mode()
def token_nats(scorer: Scorer, sequences: list[list[int]], first: int) -> list[torch.Tensor]:
    """Return -ln p of each sequence's tokens from position `first` on, given those before.

    Shorter sequences are padded at the right, where a causal model does not look.

    Args:
        sequences: All begin alike up to `first`, which is at least 1.
    """
    device = scorer.model.device
    longest = max(map(len, sequences))
    padded = [ids + [0] * (longest - len(ids)) for ids in sequences]
    ids_BT = torch.tensor(padded, device=device)
    lengths = torch.tensor([[len(ids)] for ids in sequences], device=device)
    mask_BT = (torch.arange(longest, device=device) < lengths).long()
    kept = longest - first + 1
    out = scorer.model(input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=kept)
    logits_BVT = out.logits[:, -kept:-1].float().transpose(1, 2)
    nats_BT = torch.nn.functional.cross_entropy(logits_BVT, ids_BT[:, first:], reduction="none")
    return [nats[: len(ids) - first].cpu() for nats, ids in zip(nats_BT, sequences, strict=True)]
