"""A model in a GGUF file, multiplied out by transformers for whoever computes with it here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.models.folder import GGUF_FILE, read_config

ROPE_DIVISORS = "rope_freqs.weight"
"""A table that llama.cpp reads; no parameter of the model."""


def count_gguf_parameters(path: Path) -> int:
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    return sum(math.prod(map(int, t.shape)) for t in tensors if t.name != ROPE_DIVISORS)


def load_gguf(folder: Path, dtype: Any) -> Any:
    """Load the folder's GGUF file with the config beside it.

    The file's own keys are not all that transformers needs: it reads no head size of a qwen3 and
    no rope scaling from them. It knows tensors by the names of the file's architecture, which is
    llama for a mistral.

    Raises:
        CheckpointError: transformers refuses it.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # It advises on dtypes as if the weights stayed packed; they are multiplied out.
    logging.get_logger("transformers.quantizers.quantizer_gguf").setLevel(logging.ERROR)
    config = read_config(folder)
    kind = config.model_type
    if dtype == "auto":
        dtype = config.dtype or torch.float32
    try:
        reader = GGUFReader(folder / GGUF_FILE)
        config.model_type = reader.fields["general.architecture"].contents()
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=GGUF_FILE, config=config, dtype=dtype
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{folder} does not load: {error}") from error
    model.config.model_type = kind
    return model
