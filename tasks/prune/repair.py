"""Closed-form repair: refit what a cut has left of every writer, by forward passes alone.

A sub-model and the dense model go through the layers side by side, in one batch. At each writer
the remaining columns are refitted by ridge least squares so that

    pruned stream before the sublayer + writer(pruned input) ~ dense stream after the sublayer

which takes in the errors of all earlier cuts. The pass then goes on with the new weights, so one
forward pass repairs all layers. It needs, besides the model, about
tokens x (4 x FFN width + 8 x hidden) x 4 bytes, where tokens counts both halves of the batch: for
a 7B Llama (4096, 11008) and 128 windows of 256, 20 GB; fewer windows need as much less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from tasks.prune.loss import loss_nats
from tasks.prune.masking import visited
from tasks.prune.units import Kept, Sublayer

RIDGE = 1e-2
"""Penalty on the change of a weight, as a fraction of the mean square of the writer's inputs."""


def refit(
    x_TC: torch.Tensor, target_TD: torch.Tensor, weight_DC: torch.Tensor, ridge: float
) -> torch.Tensor:
    """Return the weight [hidden, columns] that least squares draws from `weight` to the target.

    W = W0 + (Y - X W0^T)^T X (X^T X + lambda I)^-1,  lambda = ridge x mean diagonal of X^T X

    Solved in fp64.
    """
    gram_CC = (x_TC.T @ x_TC).double()
    error_CD = (x_TC.T @ (target_TD - x_TC @ weight_DC.T)).double()
    penalty = ridge * gram_CC.diagonal().mean().clamp_min(1e-12)
    gram_CC.diagonal().add_(penalty)
    change_CD = torch.cholesky_solve(error_CD, torch.linalg.cholesky(gram_CC))
    return weight_DC + change_CD.T.to(weight_DC)


def repair_submodels(
    model: Any,
    sublayers: list[Sublayer],
    submodels: list[Kept],
    fit_ids_FS: torch.Tensor,
    score_ids_NS: torch.Tensor | None = None,
    ridge: float = RIDGE,
) -> tuple[list[list[torch.Tensor]], list[float]]:
    """Repair sub-models on `fit_ids` and score what comes out on `score_ids`; the model stays.

    Returns:
        Per sub-model, the writers' kept columns [hidden, columns], one per sublayer; and per
        sub-model the loss in nats/token (nothing without `score_ids`).
    """
    num_fit, num_score = len(fit_ids_FS), 0 if score_ids_NS is None else len(score_ids_NS)
    parts = [fit_ids_FS] if score_ids_NS is None else [fit_ids_FS, score_ids_NS]
    batch = torch.cat([fit_ids_FS, *(parts * len(submodels))])
    weights: list[list[torch.Tensor]] = [[] for _ in submodels]

    def visit(
        position: int, x: torch.Tensor, stream: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        sublayer = sublayers[position]
        writer = model.get_submodule(sublayer.writer)
        bias = 0 if writer.bias is None else writer.bias
        dense_after = stream[:num_fit] + output[:num_fit] - bias
        outputs = [output[:num_fit]]
        first = num_fit
        for submodel, refitted in zip(submodels, weights, strict=True):
            columns = sublayer.columns(submodel[position]).to(x.device)
            rows = slice(first, first + num_fit + num_score)
            kept = x[rows][..., columns]
            target = dense_after - stream[rows][:num_fit]
            refitted.append(
                refit(
                    kept[:num_fit].flatten(0, 1),
                    target.flatten(0, 1),
                    writer.weight[:, columns],
                    ridge,
                )
            )
            outputs.append(F.linear(kept, refitted[-1], writer.bias))
            first = rows.stop
        return torch.cat(outputs)

    rows_of_one = [False] * num_fit + [True] * num_score
    scored = torch.tensor([False] * num_fit + rows_of_one * len(submodels))
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][scored],))
    try:
        with torch.inference_mode(), visited(model, sublayers, visit):
            logits = model(input_ids=batch.to(model.device), use_cache=False).logits
    finally:
        handle.remove()
    if score_ids_NS is None:
        return weights, []
    losses = [loss_nats(part, score_ids_NS) for part in torch.split(logits, num_score)]
    return weights, losses


def check_stream(model: Any, sublayers: list[Sublayer], ids_S: torch.Tensor) -> None:
    """Make sure that the residual stream is the sum of what the sublayers write.

    Raises:
        ValueError: it is not, so that there is no target to repair to.
    """
    ends: list[torch.Tensor] = []

    def visit(position: int, _x: torch.Tensor, stream: torch.Tensor, output: torch.Tensor) -> None:
        last = position + 1 == len(sublayers)
        if last or sublayers[position + 1].layer != sublayers[position].layer:
            ends.append(stream + output)

    with torch.inference_mode(), visited(model, sublayers, visit):
        states = model(
            input_ids=ids_S[None].to(model.device), use_cache=False, output_hidden_states=True
        ).hidden_states
    # The last hidden state has gone through the final norm, so it is left out.
    same = [
        torch.allclose(end, state, rtol=1e-3, atol=1e-3 * float(state.abs().max()))
        for end, state in zip(ends[:-1], states[1:-1], strict=True)
    ]
    if not all(same):
        raise ValueError(
            f"{model.config.model_type} does not add its sublayers' outputs to the residual "
            "stream as they are, so a cut cannot be repaired; say repair: false"
        )
