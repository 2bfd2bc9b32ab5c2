"""Tensors in, tensors out: torch and triton only. An operation is a folder: naive.py, fused.py."""

from importlib.metadata import PackageNotFoundError, version

try:
    version("kernels")
except PackageNotFoundError:
    pass
else:
    raise ImportError(
        "the PyPI package 'kernels' shadows nightpress's own; run `pip uninstall kernels` "
        "(it comes with transformers[all]; plain transformers does not need it)"
    )
