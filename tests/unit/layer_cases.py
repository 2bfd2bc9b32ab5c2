"""Random layers with the Hessians of correlated inputs, and the loss of quantizing them."""

import torch


def correlated_case(
    num_rows: int = 6, num_columns: int = 40, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight [out, in] and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_columns, num_columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(4 * num_columns, num_columns, generator=generator).double() @ mixing
    return torch.randn(num_rows, num_columns, generator=generator), inputs.T @ inputs


def loss(weight: torch.Tensor, approximation: torch.Tensor, hessian: torch.Tensor) -> float:
    difference = weight.double() - approximation.double()
    return float(torch.trace(difference @ hessian @ difference.T))
