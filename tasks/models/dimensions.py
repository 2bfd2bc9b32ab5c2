"""A model's dimensions from config.json alone, for arithmetic that must not load it."""

from __future__ import annotations

from typing import Any, NamedTuple

NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "ffn": ("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner"),
    "num_layers": ("num_hidden_layers", "n_layer"),
    "vocabulary": ("vocab_size",),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
}
"""What families call it."""


class Dimensions(NamedTuple):
    num_parameters: int
    hidden: int
    ffn: int
    """Width of a feed-forward layer, or of one expert."""
    num_layers: int
    vocabulary: int
    num_experts: int
    """In a layer; 1 where all tokens share one feed-forward layer."""
    is_tied: bool
    """The head is the embedding."""
    dtype: str
    """Of the stored weights."""

    @property
    def outside(self) -> int:
        """Parameters of embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    @property
    def block(self) -> int:
        """Parameters of one block, if all are alike."""
        return max(self.num_parameters - self.outside, 0) // self.num_layers


def read_dimensions(config: dict[str, Any], num_parameters: int) -> Dimensions | None:
    """Return what config.json tells; None where it does not tell enough."""
    text = config.get("text_config") or config
    found: dict[str, int | None] = {
        what: next((text[name] for name in names if text.get(name)), None)
        for what, names in NAMES.items()
    }
    hidden, num_layers, vocabulary = (found[k] for k in ("hidden", "num_layers", "vocabulary"))
    if not (hidden and num_layers and vocabulary):
        return None
    return Dimensions(
        num_parameters=num_parameters,
        hidden=hidden,
        ffn=found["ffn"] or 4 * hidden,
        num_layers=num_layers,
        vocabulary=vocabulary,
        num_experts=found["num_experts"] or 1,
        is_tied=text.get("tie_word_embeddings", True),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )
