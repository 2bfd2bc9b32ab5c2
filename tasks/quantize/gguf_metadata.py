"""A model's architecture in GGUF's words: which are known, their keys, what becomes of a weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
}
"""transformers' `model_type` -> llama.cpp's architecture."""
ROPE_TYPES = ("default", "linear", "llama3")


def check_kind(config: dict[str, Any]) -> None:
    """Make sure that a config.json is of a model that llama.cpp knows.

    Raises:
        ValueError: it is not.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES or "auto_map" in config:
        own = " with code of its own" if "auto_map" in config else ""
        raise ValueError(
            f"format gguf: expected one of the architectures {sorted(ARCHITECTURES)}, got "
            f"{kind}{own}; use format safetensors or compressed-tensors"
        )


def check_architecture(config: Any) -> None:
    """Make sure that llama.cpp computes what transformers does with this config.

    Raises:
        ValueError: it does not; the message says why.
    """
    kind = config.model_type
    rope = config.rope_parameters
    window = getattr(config, "sliding_window", None)
    rotated = rope.get("partial_rotary_factor", 1)
    slides = kind != "gemma2" and window is not None and window < config.max_position_embeddings
    if kind in ("qwen2", "qwen3"):
        slides = "sliding_attention" in config.layer_types
    expected = "gelu_pytorch_tanh" if kind == "gemma2" else "silu"
    reasons = {
        f"rope_type {rope['rope_type']}": rope["rope_type"] not in ROPE_TYPES,
        f"partial_rotary_factor {rotated}": rotated != 1,
        f"a sliding_window of {window}": slides,
        f"hidden activation {activation(config)}": activation(config) != expected,
    }
    if kind == "gemma2":
        scalar = config.query_pre_attn_scalar
        reasons[f"query_pre_attn_scalar {scalar}"] = scalar != head_size(config)
        alternating = ["sliding_attention", "full_attention"] * config.num_hidden_layers
        reasons["layer_types"] = config.layer_types != alternating[: config.num_hidden_layers]
    refused = [reason for reason, differs in reasons.items() if differs]
    if refused:
        raise ValueError(
            f"format gguf: llama.cpp's {name_architecture(config)} cannot compute "
            f"{', '.join(refused)}; use format compressed-tensors"
        )


def name_architecture(config: Any) -> str:
    """Return llama.cpp's architecture for a model.

    Its qwen2 has heads that fill the hidden size. One that gave up heads is written as a llama with
    biases, which computes the same.
    """
    fills = head_size(config) * config.num_attention_heads == config.hidden_size
    if config.model_type == "qwen2" and not fills:
        return "llama"
    return ARCHITECTURES[config.model_type]


def activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def head_size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def add_architecture(writer: GGUFWriter, config: Any) -> None:
    """Write the keys from which llama.cpp builds the model."""
    size, rope = head_size(config), config.rope_parameters
    writer.add_name(config.model_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.model_type == "gemma2":
        writer.add_sliding_window(config.sliding_window)
        if config.attn_logit_softcapping:
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)


def rope_divisors(config: Any) -> torch.Tensor | None:
    """Return what llama.cpp divides each rotary frequency by, [head_dim / 2]; None for 1.

    Llama 3's: 1 for wavelengths below `original / high`, `factor` above `original / low`, and in
    between the harmonic mix, 1 / d = (1 - s) / factor + s, s = (original / wavelength - low) /
    (high - low).

    Reference: Grattafiori et al. 2024, arXiv 2407.21783; transformers' rope type `llama3`.
    """
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    size = head_size(config)
    frequency = rope["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    mix = ((turns - low) / (high - low)).clamp(0, 1)
    divisors: torch.Tensor = 1 / ((1 - mix) / rope["factor"] + mix)
    return divisors.float()


def row_order(name: str, config: Any) -> torch.Tensor | None:
    """Return the order of rows in which llama.cpp's llama wants q and k; None for as they are.

    transformers rotates element i of a head with element i + size / 2, llama.cpp's llama with its
    neighbour: rows 0, size / 2, 1, size / 2 + 1, ... of each head.
    """
    if name_architecture(config) != "llama":
        return None
    if ".q_proj." in name:
        num_heads = config.num_attention_heads
    elif ".k_proj." in name:
        num_heads = config.num_key_value_heads
    else:
        return None
    rows = torch.arange(num_heads * head_size(config))
    return rows.view(num_heads, 2, -1).transpose(1, 2).flatten()


def shifts_norms(config: Any) -> bool:
    """Whether norm gains are stored less 1 by transformers, and whole by llama.cpp."""
    return bool(config.model_type == "gemma2")
