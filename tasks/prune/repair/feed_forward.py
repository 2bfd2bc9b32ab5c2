"""A feed-forward sublayer by itself: its outputs, its Jacobian, and its fit to a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from tasks.prune.repair.gauss_newton import Linearised, Parameters
from tasks.prune.repair.least_squares import Affine

Activation = Callable[..., torch.Tensor]
"""What the outputs of the readers, one or two [..., width], become element by element."""

CURVATURE_TOKENS = 4096
"""Of more tokens than this, the curvature is taken from a part: down to every fourth token. The
loss and its gradient are always taken from all."""
LARGEST_STEP = 4


class FeedForward(NamedTuple):
    """writer(activation(reader(x), ...))."""

    readers: list[Affine]
    writer: Affine
    activation: Activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.writer(self.activation(*(reader(x) for reader in self.readers)))

    def parameters(self) -> Parameters:
        """Return the weights [out, in], the readers' first, a bias as the last column."""
        return [
            a.weight_OI if a.bias_O is None else torch.cat([a.weight_OI, a.bias_O[:, None]], 1)
            for a in (*self.readers, self.writer)
        ]

    def with_parameters(self, parameters: Parameters) -> FeedForward:
        *readers, writer = [
            Affine(p, None) if a.bias_O is None else Affine(p[:, :-1].contiguous(), p[:, -1])
            for a, p in zip((*self.readers, self.writer), parameters, strict=True)
        ]
        return self._replace(readers=readers, writer=writer)

    def linearise(self, x_TI: torch.Tensor) -> Jacobian:
        outputs = [reader(x_TI) for reader in self.readers]
        slopes = []
        for i, output in enumerate(outputs):
            rest = (outputs[:i], outputs[i + 1 :])
            _, slope, *_ = torch.func.jvp(
                lambda out, rest=rest: self.activation(*rest[0], out, *rest[1]),
                (output,),
                (torch.ones_like(output),),
            )
            slopes.append(slope)
        return Jacobian(self, x_TI, self.activation(*outputs), slopes)


class Jacobian(NamedTuple):
    """Derivative of the outputs [tokens, hidden] by `FeedForward.parameters`."""

    sublayer: FeedForward
    x_TI: torch.Tensor
    inner_TF: torch.Tensor
    """The writer's inputs."""
    slopes_TF: list[torch.Tensor]
    """Derivative of the writer's inputs by each reader's outputs."""

    def some(self, tokens: slice) -> Jacobian:
        return self._replace(
            x_TI=self.x_TI[tokens].contiguous(),
            inner_TF=self.inner_TF[tokens].contiguous(),
            slopes_TF=[slope_TF[tokens].contiguous() for slope_TF in self.slopes_TF],
        )

    def outputs(self) -> torch.Tensor:
        return self.sublayer.writer(self.inner_TF)

    def forward(self, parameters: Parameters) -> torch.Tensor:
        """Return J p, [tokens, hidden]."""
        change = self.sublayer.with_parameters(parameters)
        inner_TF = torch.zeros_like(self.inner_TF)
        for slope_TF, reader in zip(self.slopes_TF, change.readers, strict=True):
            inner_TF += slope_TF * reader(self.x_TI)
        return inner_TF @ self.sublayer.writer.weight_OI.T + change.writer(self.inner_TF)

    def transposed(self, v_TD: torch.Tensor) -> Parameters:
        """Return J^T v."""
        inner_TF = v_TD @ self.sublayer.writer.weight_OI
        readers = [
            self._outer(slope_TF * inner_TF, self.x_TI, reader.bias_O)
            for slope_TF, reader in zip(self.slopes_TF, self.sublayer.readers, strict=True)
        ]
        return [*readers, self._outer(v_TD, self.inner_TF, self.sublayer.writer.bias_O)]

    def diagonal(self, weight_T: torch.Tensor) -> Parameters:
        """Return the diagonal of J^T M J, M being the diagonal matrix of the tokens' weights."""
        norms_F = self.sublayer.writer.weight_OI.square().sum(0)
        scale_T1 = weight_T[:, None]
        x_TI, inner_TF = scale_T1 * self.x_TI.square(), scale_T1 * self.inner_TF.square()
        readers = [
            norms_F[:, None] * self._outer(slope_TF.square(), x_TI, reader.bias_O, scale_T1)
            for slope_TF, reader in zip(self.slopes_TF, self.sublayer.readers, strict=True)
        ]
        writer = self.sublayer.writer
        ones_TD = torch.ones_like(x_TI[:, :1]).expand(-1, len(writer.weight_OI))
        return [*readers, self._outer(ones_TD, inner_TF, writer.bias_O, scale_T1)]

    @staticmethod
    def _outer(
        out_TO: torch.Tensor,
        in_TI: torch.Tensor,
        bias: torch.Tensor | None,
        ones_T1: torch.Tensor | None = None,
    ) -> torch.Tensor:
        product = out_TO.T @ in_TI
        if bias is None:
            return product
        column = out_TO.sum(0)[:, None] if ones_T1 is None else out_TO.T @ ones_T1
        return torch.cat([product, column], 1)


def curvature_tokens(num_tokens: int) -> slice:
    """Return the tokens that the curvature is taken from."""
    return slice(0, None, min(max(num_tokens // CURVATURE_TOKENS, 1), LARGEST_STEP))


class StreamFit(NamedTuple):
    """Weighted squared error of a feed-forward sublayer's outputs; a problem for `minimise`."""

    x_TI: torch.Tensor
    target_TD: torch.Tensor
    weight_T: torch.Tensor

    def tokens(self, part: slice) -> StreamFit:
        return StreamFit(self.x_TI[part], self.target_TD[part], self.weight_T[part])

    def loss(self, sublayer: FeedForward) -> float:
        error_TD = sublayer(self.x_TI) - self.target_TD
        return float((self.weight_T @ error_TD.square()).sum()) / 2

    def linearise(self, sublayer: FeedForward) -> Linearised:
        jacobian = sublayer.linearise(self.x_TI)
        error_TD = self.weight_T[:, None] * (jacobian.outputs() - self.target_TD)
        tokens = curvature_tokens(len(self.x_TI))
        part, weight_T = jacobian.some(tokens), tokens.step * self.weight_T[tokens]

        def curvature(direction: Parameters) -> Parameters:
            return part.transposed(weight_T[:, None] * part.forward(direction))

        return Linearised(jacobian.transposed(error_TD), curvature, part.diagonal(weight_T))
