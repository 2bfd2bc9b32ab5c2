"""Binary weights: w ~ alpha * sign(w), alpha = mean of abs(w) over a row, sign(0) = +1.

No other alpha has a smaller squared error, which is sum w^2 - (sum abs(w))^2 / n for a row of n.
"""

import torch

from tasks.models.quantized.binary import BinaryTensor
from tasks.quantize.block import Block, Quantized
from tasks.quantize.checkpoint_tensors import cast
from tasks.quantize.hessian import relative_error

CALIBRATED = False
ENCODINGS = ("binary",)


def quantize(block: Block, *, activations: bool = False) -> Quantized:
    """Quantize each weight from its values alone.

    Args:
        activations: Take each token's input as its signs and the mean of its absolute values, too.

    Reference: Rastegari et al. 2016, arXiv 1603.05279, equations 6 and 11.
    """
    return {
        name: quantize_weight(name, weight, block.dtype, activations)
        for name, weight in block.weights.items()
    }


def quantize_weight(
    name: str, weight: torch.Tensor, alpha_dtype: torch.dtype, activations: bool = False
) -> BinaryTensor:
    """Quantize a weight [out, in].

    Raises:
        ValueError: a mean is too large for the dtype.
    """
    alpha, _ = cast(name, weight.abs().mean(dim=1, keepdim=True), alpha_dtype)
    signs = torch.where(weight >= 0, 1, -1).to(torch.int8)
    error = relative_error(weight, signs * alpha.float())
    return BinaryTensor(
        signs.cpu(), alpha.cpu(), {"weight_error": error}, "binary" if activations else None
    )
