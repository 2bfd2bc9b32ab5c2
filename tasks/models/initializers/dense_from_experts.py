"""The student is a dense model: a mixture's shared weights, and the mean of its experts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.models.checkpoint import load_model
from tasks.models.initializer_context import InitializerContext, Student

DENSE = {"mixtral": "mistral", "qwen3_moe": "qwen3"}
"""By family of a mixture, the family that is the same with one feed-forward layer."""

NEEDS_DECODER = True


def initialize(context: InitializerContext) -> Student:
    """Take over all weights that tokens share; each feed-forward layer is the mean of the experts.

    Raises:
        ValueError: no dense family goes with the incoming model's, or some of its layers are
            dense already and of another width.

    Reference: Fedus et al. 2021, arXiv 2101.03961, section 4.2, which takes over the shared
    weights. The mean is ours; it is what the experts were where they grew from one layer.
    """
    model = load_model(context.folder, trust_remote_code=context.trust_remote_code, spread=False)
    family = model.config.model_type
    if family not in DENSE:
        raise ValueError(
            f"initializer dense_from_experts: expected a mixture of experts among {list(DENSE)}, "
            f"got {family}"
        )
    state = average_experts(model.state_dict())
    widths = {weight.shape[1] for name, weight in state.items() if ".mlp.down_proj." in name}
    if len(widths) > 1:
        raise ValueError(
            "initializer dense_from_experts: expected feed-forward layers of one width, got "
            f"{sorted(widths)}: some layers are dense already"
        )
    config = dense_config(model.config, *widths)
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dense.load_state_dict(state, strict=True)
    facts: dict[str, str | int | float] = {"experts_averaged": model.config.num_experts}
    return Student(dense.to(model.device), facts)


def average_experts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict with the mean of each layer's experts in their place, no router."""
    averaged: dict[str, torch.Tensor] = {}
    for name, weight in state.items():
        layer, _, own = name.rpartition(".mlp.")
        if own == "experts.gate_up_proj":
            gate, up = weight.mean(dim=0).chunk(2)
            averaged |= {f"{layer}.mlp.gate_proj.weight": gate, f"{layer}.mlp.up_proj.weight": up}
        elif own == "experts.down_proj":
            averaged[f"{layer}.mlp.down_proj.weight"] = weight.mean(dim=0)
        elif own != "gate.weight":
            averaged[name] = weight
    return averaged


def dense_config(config: Any, width: int) -> Any:
    """Return a config of the dense family with all settings that both families have."""
    family = DENSE[config.model_type]
    known = AutoConfig.for_model(family).to_dict().keys() - {"model_type", "architectures"}
    values = {name: value for name, value in config.to_dict().items() if name in known}
    return AutoConfig.for_model(family, **values | {"intermediate_size": width})
