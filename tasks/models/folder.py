"""The files of a model folder, read without loading the model."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

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


def name_quantization(folder: Path) -> str | None:
    """Return how a model folder's weights are stored where they are not plain numbers."""
    if (folder / PACKED_ABOUT).is_file():
        return "nightpress"
    if (folder / GGUF_FILE).is_file():
        return "gguf"
    said = load_config(folder).get("quantization_config")
    return str(said.get("quant_method", "quantization_config")) if said else None


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


def copy_companions(source: Path, out: Path) -> None:
    """Copy what travels with the weights; a model's own code, too, where its config names it."""
    if "auto_map" in load_config(source):
        for path in source.glob("*.py"):
            shutil.copyfile(path, out / path.name)
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
