"""Activations in 8 bits times weights in 8 bits: the specification, output by output.

    step[t] = max |x[t, c]| / 127  over the columns c that are no outliers, or 1 where that is not a
              normal float
    q[t, c] = round_half_even(x[t, c] / step[t]), 0 in an outlier column
    y[t, o] = step[t] * scale[o] * (sum over c of q[t, c] * code[o, c], an exact integer)
              + sum over outlier columns k of x[t, column[k]] * weight[o, k]

A few columns of x that are far larger than the others would take the range from them all; they are
multiplied in full precision. What the codes say of these columns is not looked at.
`fused.py` has the same signature; its outlier part differs by the rounding of sums.

Reference: Dettmers et al. 2022, arXiv 2208.07339, section 3.
"""

import torch

TINY = torch.finfo(torch.float32).tiny


def linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    outlier_columns: torch.Tensor | None = None,
    outlier_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y [..., out], in x's dtype.

    Args:
        x: Activations, floating point [..., in].
        codes: Weights, int8 [out, in].
        scale: Steps of the weights, floating point [out].
        outlier_columns: int64 [num_outliers], each once.
        outlier_weight: Floating point [out, num_outliers].
    """
    rows = x.float().reshape(-1, x.shape[-1])
    y = torch.empty(len(rows), len(codes))
    outliers = [] if outlier_columns is None else outlier_columns.tolist()
    for token, values in enumerate(rows):
        rest = values.clone()
        rest[outliers] = 0
        step = rest.abs().max() / 127
        step = step if step >= TINY else torch.ones(())
        quantized = [int(torch.round(value / step)) for value in rest]
        for output, weights in enumerate(codes.tolist()):
            product = sum(q * code for q, code in zip(quantized, weights, strict=True))
            y[token, output] = float(product) * step * scale[output].float()
            if outlier_weight is not None:
                y[token, output] += (values[outliers] * outlier_weight[output].float()).sum()
    return y.reshape(*x.shape[:-1], len(codes)).to(x.dtype)
