"""Blocks of the corpus as a forward pass takes them: what goes in, and what is learned of it.

Shapes: B blocks of T tokens; the logits of a forward pass are rows, N of them. A causal or a masked
language model has a row for each token, N = B T; a classifier one for each block, N = B; a model
that answers questions two for each block, over positions, N = 2 B.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tasks.distill.blocks import Blocks, next_tokens

IGNORED = -100
"""In place of a label that is not there; of a score it is NaN."""


@dataclass(frozen=True)
class Examples:
    """Weights make each loss a mean over the whole optimiser step: its weighted sum over all
    forward passes, divided by the sum of `rows`."""

    inputs: dict[str, Any]
    """Keyword arguments of the model: `input_ids` [B, T]; of an encoder also `attention_mask` and,
    where its tokenizer makes them, `token_type_ids`."""
    labels: torch.Tensor
    """Of each row of logits: int64, or float32 scores; [B, T], [B] or [B, 2]."""
    rows: torch.Tensor
    """Weight of each row in the losses that look at the teacher's logits; as `labels`."""
    labelled: torch.Tensor
    """Weight of each row in the losses that look at its label; as `labels`."""
    tokens: torch.Tensor
    """Weight of each token in the losses over layers, [B, T]."""

    def padded(self, num_blocks: int) -> Examples:
        """Return so many blocks: what is missing is the first one again, with weights of 0."""
        missing = num_blocks - len(self.tokens)
        repeated, weightless = partial(fill_up, missing), partial(fill_up, missing, weight=0)
        return Examples(
            inputs={
                name: repeated(value) if isinstance(value, torch.Tensor) else value
                for name, value in self.inputs.items()
            },
            labels=repeated(self.labels),
            rows=weightless(self.rows),
            labelled=weightless(self.labelled),
            tokens=weightless(self.tokens),
        )

    def take(self, blocks: slice) -> Examples:
        """Return some of the blocks."""
        inputs = {
            name: value[blocks] if isinstance(value, torch.Tensor) else value
            for name, value in self.inputs.items()
        }
        parts = {
            name: getattr(self, name)[blocks] for name in ("labels", "rows", "labelled", "tokens")
        }
        return replace(self, inputs=inputs, **parts)


def read_examples(blocks: Blocks, rows: torch.Tensor, device: Any) -> Examples:
    """Return those blocks that make up a step's global batch.

    Args:
        rows: Their places in the corpus, [B].
    """
    ids_BT = blocks.ids[rows].long().to(device)
    if blocks.loss_mask is not None:
        return predict_next(ids_BT, blocks.loss_mask[rows].to(device))
    assert blocks.attention_mask is not None and blocks.labels is not None
    mask_BT = blocks.attention_mask[rows].long().to(device)
    longest = int(mask_BT.sum(dim=1).max())  # what all of them pad is not computed
    inputs = {"input_ids": ids_BT[:, :longest], "attention_mask": mask_BT[:, :longest]}
    if blocks.token_type_ids is not None:
        types_BT = blocks.token_type_ids[rows].long().to(device)
        inputs["token_type_ids"] = types_BT[:, :longest]
    labels = blocks.labels[rows].to(device)
    is_score = labels.is_floating_point()
    labels = labels if is_score else labels.long()
    if labels.shape == mask_BT.shape:  # of a masked language model, a label for each token
        labels = labels[:, :longest]
    tokens_BT = mask_BT[:, :longest]
    has_label = ~labels.isnan() if is_score else labels != IGNORED
    weights = tokens_BT if labels.shape == tokens_BT.shape else torch.ones_like(has_label).long()
    return Examples(
        inputs=inputs,
        labels=labels,
        rows=weights,
        labelled=spread(has_label, weights),
        tokens=spread(tokens_BT, weights),
    )


def predict_next(ids_BT: torch.Tensor, loss_mask_BT: torch.Tensor) -> Examples:
    """Return blocks in which each token's label is the next one."""
    labels_BT, learned_BT = next_tokens(ids_BT, loss_mask_BT)
    inputs = {"input_ids": ids_BT, "use_cache": False}
    return Examples(inputs, labels_BT, learned_BT, learned_BT, learned_BT)


def fill_up(missing: int, tensor: torch.Tensor, weight: int = 1) -> torch.Tensor:
    return torch.cat([tensor, weight * tensor[:1].expand(missing, *tensor.shape[1:])])


def spread(mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return a mask as weights with the same sum as those of all rows, float32."""
    return mask.float() * (rows.sum() / mask.sum().clamp(min=1))
