"""Load and save a model folder: safetensors only, remote code off, everything else comes along."""

import json
import math
from pathlib import Path
from typing import Any

from tasks.digests import digest_file, digest_files
from tasks.errors import CheckpointError
from tasks.models.folder import (
    GGUF_FILE,
    PACKED_ABOUT,
    copy_companions,
    load_config,
    model_files,
    tensor_shapes,
)
from tasks.models.model_kind import auto_class
from tasks.records import ModelRef


def describe_model(
    folder: Path, uri: str, num_parameters: int | None = None, **facts: str | int | float
) -> ModelRef:
    """Make a model folder's record by reading config and safetensors headers; no torch.

    Args:
        num_parameters: Where the stored tensors are packed codes, the parameters they stand for.

    Raises:
        CheckpointError: no config, or no safetensors weights.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{folder} holds no model", "expected a config.json in it")
    if num_parameters is None:
        num_parameters = count_parameters(folder)
    config = json.loads(config_path.read_text(encoding="utf-8"))
    files = model_files(folder)
    return ModelRef(
        uri=uri,
        digest=digest_files({path: digest_file(folder / path) for path in files}),
        architecture=(config.get("architectures") or ["unknown"])[0],
        num_parameters=num_parameters,
        num_bytes=sum((folder / path).stat().st_size for path in files),
        facts=facts,
    )


def count_parameters(folder: Path) -> int:
    """Sum the sizes of all stored tensors; tied ones are stored, and count, once.

    Of packed parameters what they stand for is counted.

    Raises:
        CheckpointError: there are no safetensors files.
    """
    if (folder / PACKED_ABOUT).is_file():
        said = json.loads((folder / PACKED_ABOUT).read_text(encoding="utf-8"))
        return sum(math.prod(tensor["shape"]) for tensor in said["tensors"].values())
    if (folder / GGUF_FILE).is_file():
        from tasks.models.gguf_checkpoint import count_gguf_parameters

        return count_gguf_parameters(folder / GGUF_FILE)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(
            f"{folder} has no *.safetensors weights",
            "pickled weights are not loaded; convert them with save_pretrained first",
        )
    return sum(math.prod(shape) for shard in shards for shape in tensor_shapes(shard).values())


def load_model(
    folder: Path, dtype: str = "float32", trust_remote_code: bool = False, spread: bool = True
) -> Any:
    """Load a model in evaluation mode, with the head that its config names.

    Args:
        dtype: Name of a torch dtype, or `auto` for the one that the folder is stored in.
        spread: Over all GPUs that this process sees, for a model larger than one; otherwise it is
            on the first.

    Raises:
        CheckpointError: transformers refuses it.
    """
    import torch

    from tasks.models.spreading import pick_device, place_model

    stored_as = dtype if dtype == "auto" else getattr(torch, dtype)
    model = read_model(folder, stored_as, trust_remote_code)
    return (place_model(model) if spread else model.to(pick_device())).eval()


def read_model(folder: Path, dtype: Any, trust_remote_code: bool) -> Any:
    """Read a model, with the head that its config names, into the CPU's memory; files that hold
    it in the given torch dtype are mapped, not copied.

    Raises:
        CheckpointError: transformers refuses it.
    """
    from tasks.models.progress_bars import hide_progress_bars

    hide_progress_bars()
    if (folder / PACKED_ABOUT).is_file():
        from tasks.models.packed_checkpoint import load_packed

        return load_packed(folder, dtype, trust_remote_code)
    if (folder / GGUF_FILE).is_file():
        from tasks.models.gguf_checkpoint import load_gguf

        return load_gguf(folder, dtype)
    try:
        return auto_class(load_config(folder)).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} does not load: {error}") from error


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that loads: {error}") from error


def save_model(model: Any, companions: Path, out: Path) -> None:
    """Write config and safetensors to `out`, and what travels with the weights beside them."""
    model.save_pretrained(out)
    copy_companions(companions, out)
