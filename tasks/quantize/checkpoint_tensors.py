"""The tensors of a checkpoint on disk: read by name, cast, and written as one file."""

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.models.folder import load_config, tensor_shapes

TIED_HEAD = "lm_head.weight"


def stored_names(folder: Path) -> dict[str, Path]:
    """Return the checkpoint's tensor names, sorted, and their files; a tied head is left out."""
    names = {name: path for path in folder.glob("*.safetensors") for name in tensor_shapes(path)}
    if load_config(folder).get("tie_word_embeddings"):
        names.pop(TIED_HEAD, None)
    return dict(sorted(names.items()))


def read_tensors(
    folder: Path, names: Collection[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors, or all, one at a time, in the order of their names."""
    for name, path in stored_names(folder).items():
        if names is None or name in names:
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)


def stored_bytes(folder: Path, dtype: torch.dtype, without: Collection[str]) -> int:
    """Return what the other tensors take in another floating-point type."""
    shapes = {
        n: shape
        for path in folder.glob("*.safetensors")
        for n, shape in tensor_shapes(path).items()
    }
    names = set(stored_names(folder)) - set(without)
    return sum(math.prod(shapes[name]) for name in names) * dtype.itemsize


def cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """Return a parameter in another floating-point type, and how many values became 0.

    Raises:
        ValueError: a value becomes infinite.
    """
    if not tensor.is_floating_point():
        return tensor, 0
    done = tensor.to(dtype)
    if (done.isinf() & tensor.isfinite()).any():
        largest = float(tensor.abs().max())
        raise ValueError(
            f"dtype: {name} holds {largest:.6g}, and the largest {dtype} is "
            f"{torch.finfo(dtype).max:.6g}; use bfloat16 or float32"
        )
    return done, int(((done == 0) & (tensor != 0)).sum())


def write_checkpoint(
    out: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """Write config.json and model.safetensors; equal input gives equal bytes."""
    write_config(out, config, dtype)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def write_config(out: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Write config.json, the dtype of the unquantized tensors in it."""
    config = {key: value for key, value in config.items() if key != "torch_dtype"}
    config["dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
