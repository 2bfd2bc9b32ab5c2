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
PACKED_ABOUT = "nightpress.json"
"""Stands in a folder that is in nightpress's own layout."""
GGUF_FILE = "model.gguf"
"""Weights for llama.cpp, beside the config.json that they were made from."""


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
            or path.name in ("config.json", PACKED_ABOUT)
            or path.name.endswith((".safetensors", ".safetensors.index.json", ".gguf", ".py"))
        )
    ]


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


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    return {name: entry["shape"] for name, entry in read_header(path).items()}


def read_header(path: Path) -> dict[str, Any]:
    """Read a safetensors header (8 bytes of length, then JSON): dtype and shape per tensor."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def load_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def read_config(folder: Path) -> Any:
    """Return transformers' config, its defaults filled in."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def load_model(
    folder: Path, dtype: str = "float32", trust_remote_code: bool = False, spread: bool = True
) -> Any:
    """Load a causal language model in evaluation mode.

    Args:
        dtype: Name of a torch dtype, or `auto` for the one that the folder is stored in.
        spread: Over all GPUs that this process sees, for a model larger than one; otherwise it is
            on the first.

    Raises:
        CheckpointError: transformers refuses it.
    """
    import torch

    from tasks.models.spreading import place_model

    stored_as = dtype if dtype == "auto" else getattr(torch, dtype)
    model = read_model(folder, stored_as, trust_remote_code)
    return (place_model(model) if spread else model.to(pick_device())).eval()


def read_model(folder: Path, dtype: Any, trust_remote_code: bool) -> Any:
    """Read a causal language model into the CPU's memory; files that hold it in the given torch
    dtype are mapped, not copied.

    Raises:
        CheckpointError: transformers refuses it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if (folder / PACKED_ABOUT).is_file():
        from tasks.models.packed_checkpoint import load_packed

        return load_packed(folder, dtype, trust_remote_code)
    if (folder / GGUF_FILE).is_file():
        from tasks.models.gguf_checkpoint import load_gguf

        return load_gguf(folder, dtype)
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} does not load: {error}") from error


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
