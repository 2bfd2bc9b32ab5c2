"""Random weights of real shapes, whose memory is measured: what they hold, not what they say."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.models.streaming import open_streamed
from tasks.prune.bench import Bench, Work, set_up
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.prune.staging import stage_options
from tests.benchmarks.subjects import find_subjects


class Random(NamedTuple):
    """A random model and its text; the options are the product's on few windows."""

    config: dict[str, Any]
    num_windows: int
    options: dict[str, Any]


WINDOW = 128
SWEEP = {"num_submodels": 2, "submodels_per_unit": 2, "windows_per_submodel": 1}
HALF_B = "random 0.5B Llama shape"
BLOCK_7B = "one random block of a 7B Llama"
MODELS = {
    HALF_B: Random(
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 32000,
        },
        num_windows=4,
        options=SWEEP,
    ),
    BLOCK_7B: Random(
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 1,
            "vocab_size": 4096,
        },
        num_windows=1,
        options=SWEEP | {"refine": 1},
    ),
}


def build_random(name: str, scale: Scale, scratch: Path, streamed: bool) -> Bench:
    """Return a bench around random weights.

    Args:
        streamed: From a checkpoint in bfloat16, block by block; else in fp32 and in memory.
    """
    shape = MODELS[name]
    layers = {"num_hidden_layers": scale.big_layers}
    config = LlamaConfig(**layers | shape.config, tie_word_embeddings=True)
    if streamed:
        child = multiprocessing.get_context("fork").Process(target=save, args=(config, scratch))
        child.start()  # what it takes to make the weights is not this process's
        child.join()
        model = open_streamed(scratch)
    else:
        model = LlamaForCausalLM(config).eval()
    size = (shape.num_windows, WINDOW)
    ids = torch.randint(config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    options = stage_options(find_subjects()[0], 50, shape.options, 0, scale, scratch).options
    options = options | shape.options | {"num_windows": len(ids), "window": WINDOW}
    return set_up(Work(Path, "", "", options), model, ids)


def save(config: LlamaConfig, folder: Path) -> None:
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
