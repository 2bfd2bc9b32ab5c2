"""Repair: refit what a cut has left of every sublayer, by forward passes alone.

A sub-model and the dense model go through the layers side by side, in one batch. Every reader is
refitted by ridge least squares to put out, from the pruned stream, what the dense model's puts
out; every writer so that

    pruned stream before the sublayer + writer(pruned input) ~ dense stream after the sublayer

which takes in the errors of all earlier cuts. Tokens count by the size of their dense stream, as
norms will see them. The pass goes on with the new weights, so one pass repairs all layers.
`refine` then improves each feed-forward sublayer as a whole (`feed_forward`), and the last one
towards the dense model's distribution (`readout`).

What it holds beside the model is one block's: about 3.5 x tokens x (FFN width + 2 x hidden)
floats, tokens counting both halves of the batch, and what does not grow with the text (docs,
"Memory"). Weights that are kept for the end of the pass wait on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from tasks.prune.loss import loss_nats
from tasks.prune.repair.feed_forward import FeedForward, StreamFit
from tasks.prune.repair.least_squares import Affine, Inputs
from tasks.prune.repair.refinement import Streams, refine_sublayer
from tasks.prune.repair.skipping import skipping
from tasks.prune.repair.spreading import spread, spread_rows
from tasks.prune.repair.stream import Anatomy, affine, reader_paths, watched
from tasks.prune.units.masking import masked
from tasks.prune.units.units import Kept, Sublayer, Units, list_sublayers

SHARED = ("hidden", "experts")
"""Kinds of which all rows of a batch have the same units."""

Repaired = dict[str, Affine]
"""New weights by module path, as wide as the dense ones; what the cut takes is zero or unread."""


def repair_submodels(
    model: Any,
    groups: Sequence[Units],
    anatomy: Anatomy,
    submodels: list[Kept],
    fit_ids_FS: torch.Tensor,
    score_ids_NS: torch.Tensor | None = None,
    refine: int = 0,
    keep_weights: bool = True,
    score: Callable[[torch.Tensor, torch.Tensor], float] = loss_nats,
) -> tuple[list[Repaired], list[float]]:
    """Repair sub-models on `fit_ids` and score what comes out on `score_ids`; the model stays.

    Hidden dimensions and experts that are cut are off in the dense model, too: what they did is
    not made good, and all sub-models of a call have the same ones. Layers may differ.

    Args:
        groups: All groups of units that there are, also those that are kept whole.
        refine: Levenberg-Marquardt steps per feed-forward sublayer.
        keep_weights: False frees them as soon as the pass has used them; else they wait on the
            CPU for its end.
        score: Called with a sub-model's logits [N, S, vocabulary] and `score_ids`.

    Returns:
        Per sub-model its weights, and its score (nothing without `score_ids`).
    """
    parts = [fit_ids_FS] if score_ids_NS is None else [fit_ids_FS, score_ids_NS]
    batch = torch.cat([fit_ids_FS, *(parts * len(submodels))])
    num_fit, num_score = len(fit_ids_FS), sum(map(len, parts[1:]))
    sublayers = list_sublayers(groups)
    visitor = _Repair(model, groups, anatomy, submodels, num_fit, num_score, refine, keep_weights)
    shared = [(g, mask) for g, mask in zip(groups, submodels[0], strict=True) if g.kind in SHARED]

    rows_of_one = [False] * num_fit + [True] * num_score
    scored = torch.tensor([False] * num_fit + rows_of_one * len(submodels))
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][scored],))
    try:
        with (
            torch.no_grad(),
            masked(model, [group for group, _ in shared], [mask for _, mask in shared]),
            skipping(model, visitor.skipped, visitor.rows),
            watched(model, sublayers, visitor, anatomy.stream),
        ):
            logits = model(input_ids=batch.to(model.device), use_cache=False).logits
    finally:
        handle.remove()
    if score_ids_NS is None:
        return visitor.repaired, []
    scores = [score(part, score_ids_NS) for part in torch.split(logits, num_score)]
    return visitor.repaired, scores


class _Repair:
    """Walks through one pass over [dense fit windows, then each sub-model's windows]."""

    def __init__(
        self,
        model: Any,
        groups: Sequence[Units],
        anatomy: Anatomy,
        submodels: list[Kept],
        num_fit: int,
        num_score: int,
        refine: int,
        keep_weights: bool,
    ) -> None:
        self.model, self.anatomy = model, anatomy
        self.refine, self.keep_weights = refine, keep_weights
        self.sublayers, self.num_fit = list_sublayers(groups), num_fit
        self.submodels = [
            [mask for group, mask in zip(groups, kept, strict=True) if isinstance(group, Sublayer)]
            for kept in submodels
        ]
        self.skipped = [
            {
                int(index)
                for group, mask in zip(groups, kept, strict=True)
                if group.kind == "layers"
                for index in np.flatnonzero(~mask)
            }
            for kept in submodels
        ]
        size = num_fit + num_score
        firsts = range(num_fit, num_fit + size * len(submodels), size)
        self.rows = [slice(first, first + size) for first in firsts]
        self.repaired: list[Repaired] = [{} for _ in submodels]
        self.inputs: list[Inputs | None] = []
        self.read_x = torch.empty(0)

    def fit(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens that a sub-model (or the dense model) is fitted on, [tokens, ...]."""
        return x[: self.num_fit].flatten(0, 1)

    def weights(self, stream: torch.Tensor) -> torch.Tensor:
        return self.fit(stream).square().mean(-1).clamp_min(1e-12).reciprocal()

    def read(
        self, position: int, index: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        sublayer = self.sublayers[position]
        if x is not self.read_x:
            weight_T = self.weights(before if self.anatomy.stream == "sum" else x)
            self.read_x = x
            self.inputs = [
                None if sublayer.layer in skipped else Inputs(self.fit(x[rows]), weight_T)
                for rows, skipped in zip(self.rows, self.skipped, strict=True)
            ]
        path = reader_paths(sublayer)[index]
        dense = affine(self.model, path)
        for inputs, rows, repaired in zip(self.inputs, self.rows, self.repaired, strict=True):
            if inputs is not None:
                repaired[path] = inputs.refit(dense, self.fit(output))
                output[rows] = repaired[path](x[rows])
        return output

    def write(
        self, position: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        sublayer = self.sublayers[position]
        dense = affine(self.model, sublayer.writer)
        after = before[: self.num_fit] + output[: self.num_fit]
        weight_T = self.weights(after)
        for number, rows in enumerate(self.rows):
            if sublayer.layer in self.skipped[number]:
                continue
            columns = sublayer.columns(self.submodels[number][position]).to(x.device)
            kept = x[rows][..., columns]
            target_TD = self.fit(after) - self.fit(before[rows])
            inputs = Inputs(self.fit(kept), weight_T)
            writer = inputs.refit(dense.columns(columns), target_TD)
            repaired = self.repaired[number]
            activation = self.anatomy.activations[position]
            if self.refine and activation:
                paths = [path for path, _ in sublayer.readers]
                readers = [repaired[path].rows(columns) for path in paths]
                fitted = refine_sublayer(
                    FeedForward(readers, writer, activation),
                    StreamFit(self.fit(self.read_x[rows]), target_TD, weight_T),
                    Streams(self.fit(before[rows]), self.fit(after)),
                    self.anatomy.head if position == len(self.sublayers) - 1 else None,
                    self.refine,
                )
                for path, reader in zip(paths, fitted.readers, strict=True):
                    repaired[path] = spread_rows(reader, columns, repaired[path])
                writer = fitted.writer
                output[rows] = fitted(self.read_x[rows])
            else:
                output[rows] = writer(kept)
            if not self.keep_weights:
                repaired.clear()
                continue
            repaired[sublayer.writer] = spread(writer, columns)
            for path in (*reader_paths(sublayer), sublayer.writer):
                repaired[path] = repaired[path].cpu()
        return output


def as_tensors(model: Any, repaired: Repaired) -> dict[str, torch.Tensor]:
    """Return repaired layers as the model's state dict has them."""
    tensors = {}
    for path, layer in repaired.items():
        module = model.get_submodule(path)
        turned = isinstance(module, Conv1D)
        tensors[f"{path}.weight"] = layer.weight_OI.T if turned else layer.weight_OI
        if layer.bias_O is not None:
            tensors[f"{path}.bias"] = layer.bias_O
    return tensors
