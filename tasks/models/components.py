"""A model's parameters and FLOPs by component, from config.json and safetensors headers; no torch.

A matrix costs two FLOPs per element and token, one that experts share out only the chosen experts'
part. Attention's scores and weighted values cost 2 n_ctx d_attn per layer and token, averaged over
the places of a causal window, and twice that where every token sees the whole window. Looking up
embeddings, norms, biases and activation functions are left out.

Reference: Kaplan et al. 2020, arXiv 2001.08361, table 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from tasks.models.dimensions import read_dimensions
from tasks.models.folder import load_config, name_quantization, tensor_shapes
from tasks.models.model_kind import head_kind
from tasks.records import Record

PATTERNS = {
    "norms": r"(?i:norm)|\bln_",
    "head": r"\b(lm_head|embed_out|cls|(pre_)?classifier|score|qa_outputs|pooler|vocab_\w+)\.",
    "embeddings": r"embed|\bw[tp]e\.",
    "experts": r"\.experts\.|\.(router|gate)\.|block_sparse_moe\.",
    "attention": r"attn|attention",
    "feed-forward": r"mlp|ffn|feed_forward|shared_expert|\bfc\d|\blin\d|intermediate|output\.dense",
}
"""What a tensor's name says of its component; the first that matches counts."""
ROUTER = re.compile(r"\.(router|gate)\.")
ATTENTION_OUT = re.compile(r"\b(o_proj|out_proj|c_proj|out_lin|dense|wo)\.weight$")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k")
NAMES = ("embeddings", "attention", "feed-forward", "experts", "norms", "head", "other")


class Component(Record):
    """All of a model's parameters of one kind."""

    name: str
    """One of NAMES."""
    num_parameters: int
    """Tied ones once, as embeddings."""
    flops_per_token: int
    """Of a forward pass over a full window, a multiplication with its addition as two."""


def count_components(folder: Path, window: int) -> list[Component] | None:
    """Count a model folder's parameters and FLOPs per token, by component.

    Args:
        window: Tokens that the model sees at once, n_ctx.

    Returns:
        Those that the model has; None where its weights are packed codes, or its config does not
        tell its dimensions.
    """
    config = load_config(folder)
    size = None if name_quantization(folder) else read_dimensions(config, 0)
    if size is None:
        return None
    text = config.get("text_config") or config
    top_k = next((text[name] for name in TOP_K if text.get(name)), 1)
    is_causal = head_kind((config.get("architectures") or [""])[0]) == "causal_lm"
    per_width = 2 * window if is_causal else 4 * window
    parameters: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    for shard in sorted(folder.glob("*.safetensors")):
        for tensor, shape in tensor_shapes(shard).items():
            count, component = math.prod(shape), name_component(tensor)
            parameters[component] += count
            if len(shape) < 2 or component in ("norms", "embeddings") or tensor.endswith(".bias"):
                continue
            is_shared_out = component == "experts" and not ROUTER.search(tensor)
            flops[component] += (
                2 * count * top_k // size.num_experts if is_shared_out else 2 * count
            )
            if component == "attention" and ATTENTION_OUT.search(tensor):
                flops[component] += per_width * count // size.hidden  # d_attn of this layer
    if is_causal and not parameters["head"]:  # tied
        flops["head"] = 2 * size.vocabulary * size.hidden
    return [
        Component(name=name, num_parameters=parameters[name], flops_per_token=flops[name])
        for name in NAMES
        if parameters[name] or flops[name]
    ]


def name_component(tensor: str) -> str:
    """Return the component that a tensor of a checkpoint belongs to."""
    found = (name for name, pattern in PATTERNS.items() if re.search(pattern, tensor))
    return next(found, "other")
