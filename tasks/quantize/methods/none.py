"""Leave every weight as it is, in the export's dtype."""

import torch

NEEDS_HESSIAN = False


def quantize(weight: torch.Tensor, hessian: torch.Tensor | None, scale_dtype: torch.dtype) -> None:
    return None
