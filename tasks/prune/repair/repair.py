"""Repair: refit what a cut has left of every sublayer, by forward passes alone.

A sub-model and the dense model go through the layers side by side, in one batch. Every reader is
refitted by ridge least squares to put out, from the pruned stream, what the dense model's puts
out; every writer so that

    pruned stream before the sublayer + writer(pruned input) ~ dense stream after the sublayer

which takes in the errors of all earlier cuts. Tokens count by the size of their dense stream, as
norms will see them. The pass goes on with the new weights, so one pass repairs all layers.
`refine` then improves each feed-forward sublayer as a whole (`feed_forward`), and the last one
towards the dense model's distribution (`readout`).

It needs, besides the model, about tokens x (8 x FFN width + 16 x hidden) x 4 bytes with `refine`
and half of it without, where tokens counts both halves of the batch: for a 7B Llama (4096, 11008)
and 128 windows of 256, 40 GB; fewer windows need as much less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.prune.loss import loss_nats
from tasks.prune.repair.feed_forward import FeedForward, StreamFit
from tasks.prune.repair.gauss_newton import minimise
from tasks.prune.repair.least_squares import Affine, Inputs
from tasks.prune.repair.readout import Readout
from tasks.prune.repair.stream import Anatomy, affine, reader_paths, watched
from tasks.prune.units.masking import masked
from tasks.prune.units.units import Kept, Sublayer, Units, find_layers, list_sublayers

CHECKED = 8
"""Of the fitted windows, one in so many is kept back to see how far a step should go."""
AnyFit = TypeVar("AnyFit", StreamFit, Readout)

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
        keep_weights: False frees them as soon as the pass has used them.
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


@contextmanager
def skipping(model: Any, skipped: list[set[int]], rows: list[slice]) -> Iterator[None]:
    """Let each sub-model's rows of the batch go past the layers that it does not have."""

    def restore(index: int) -> Callable[..., torch.Tensor | None]:
        past = [r for layers, r in zip(skipped, rows, strict=True) if index in layers]

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
            for r in past:
                output[r] = inputs[0][r]
            return output

        return hook

    layers: Any = model.get_submodule(find_layers(model))
    off = sorted(set().union(*skipped))
    handles = [layers[index].register_forward_hook(restore(index)) for index in off]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        output = output.clone()
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
        output = output.clone()
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
                fitted = self.refit(
                    FeedForward(readers, writer, activation),
                    StreamFit(self.fit(self.read_x[rows]), target_TD, weight_T),
                    position,
                    self.fit(before[rows]),
                    self.fit(after),
                )
                for path, reader in zip(paths, fitted.readers, strict=True):
                    repaired[path] = spread_rows(reader, columns, repaired[path])
                writer = fitted.writer
                output[rows] = fitted(self.read_x[rows])
            else:
                output[rows] = writer(kept)
            repaired[sublayer.writer] = spread(writer, columns)
            if not self.keep_weights:
                repaired.clear()
        return output

    def refit(
        self,
        sublayer: FeedForward,
        fit: StreamFit,
        position: int,
        before_TD: torch.Tensor,
        after_TD: torch.Tensor,
    ) -> FeedForward:
        sublayer = minimise(*divided(fit), sublayer, self.refine)
        head = self.anatomy.head
        if head and position == len(self.sublayers) - 1:
            readout = Readout(fit.x_TI, before_TD, after_TD, head.norm, head.linear)
            sublayer = minimise(*divided(readout), sublayer, self.refine)
        return sublayer


def divided(problem: AnyFit) -> tuple[AnyFit, AnyFit]:
    """Part a fit into what steps are made for and what they are checked on, the last windows."""
    last = len(problem.x_TI) - len(problem.x_TI) // CHECKED
    return problem.tokens(slice(0, last)), problem.tokens(slice(last, None))


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


def spread(writer: Affine, columns: torch.Tensor) -> Affine:
    """Return a writer as wide as the dense one, zero where it has no columns."""
    wide = writer.weight_OI.new_zeros(len(writer.weight_OI), len(columns))
    wide[:, columns] = writer.weight_OI
    return Affine(wide, writer.bias_O)


def spread_rows(reader: Affine, rows: torch.Tensor, wide: Affine) -> Affine:
    """Return a reader as high as the dense one; what a unit that is cut reads stays."""
    weight = wide.weight_OI.clone()
    weight[rows] = reader.weight_OI
    if wide.bias_O is None or reader.bias_O is None:
        return Affine(weight, None)
    bias = wide.bias_O.clone()
    bias[rows] = reader.bias_O
    return Affine(weight, bias)
