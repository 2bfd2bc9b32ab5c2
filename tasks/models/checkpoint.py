"""Load and save a model folder: safetensors only, remote code off, everything else comes along."""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

from tasks.digests import digest_file, digest_files
from tasks.errors import CheckpointError
from tasks.records import ModelRef

COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
)
"""Files that travel with the weights through every step."""


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


def model_files(folder: Path) -> list[str]:
    """Names of a folder's files that make up the model; logs, notes and the like do not count."""
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (
            path.name in COMPANIONS
            or path.name == "config.json"
            or path.name.endswith((".safetensors", ".safetensors.index.json", ".py"))
        )
    ]


def count_parameters(folder: Path) -> int:
    """Sum the sizes of all stored tensors; tied ones are stored, and count, once.

    Raises:
        CheckpointError: there are no safetensors files.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(
            f"{folder} has no *.safetensors weights",
            "pickled weights are not loaded; convert them with save_pretrained first",
        )
    return sum(math.prod(shape) for shard in shards for shape in tensor_shapes(shard).values())


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Read tensor names and shapes from a safetensors header (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def load_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def load_model(folder: Path, dtype: str = "float32", trust_remote_code: bool = False) -> Any:
    """Load a causal language model in evaluation mode, on the GPU where there is one.

    Args:
        dtype: Name of a torch dtype, or `auto` for the one that the folder is stored in.

    Raises:
        CheckpointError: transformers refuses it.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} does not load: {error}") from error
    return model.to(pick_device()).eval()


def pick_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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


def copy_companions(source: Path, out: Path) -> None:
    """Copy what travels with the weights; a model's own code, too, where its config names it."""
    if "auto_map" in load_config(source):
        for path in source.glob("*.py"):
            shutil.copyfile(path, out / path.name)
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
