"""Sublayers of different widths: `per_layer_config` in the config, and the code that reads it.

transformers has the setting, but its models build every layer from the global config; a modelling
file travels with the model and builds each layer from its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.models.checkpoint import load_config
from tasks.prune.shapes.stock_class import name_class
from tasks.prune.shapes.stock_config import FFN_WIDTHS, own_name, smaller_config
from tasks.prune.units.units import Kept, Units, find_layers

MODULE = "modeling_per_layer"

SOURCE = '''"""{base} with each layer as wide as `per_layer_config` in config.json says."""

from transformers import {base}


class PerLayer{base}({base}):
    """Built as {base} is; then the layers are built again, each from its own config."""

    def __init__(self, config):
        config.allow_global_per_layer_attribute_access = True
        super().__init__(config)
        layers = self.get_submodule("{layers}")
        for index, layer in enumerate(layers):
            layers[index] = type(layer)(config.per_layer_config[index], index)
'''
"""The modelling file; `base` is the stock class, `layers` the path of its layers."""


def build_per_layer(
    model: Any,
    groups: Sequence[Units],
    kept: Kept,
    wide: Any,
    state: dict[str, torch.Tensor],
    folder: Path,
) -> Any:
    """Make the smaller model by its own modelling file, from a folder as it will be published.

    Args:
        wide: Config of a stock model that is as wide everywhere as its widest sublayers.
        state: Sliced weights.
        folder: An empty folder.

    Returns:
        The model; saving it writes its code as well.

    Raises:
        RuntimeError: the layers' own configs do not lead to these weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    base = (wide.architectures or [""])[0]
    source = SOURCE.format(base=base, layers=find_layers(model))
    (folder / f"{MODULE}.py").write_text(source, encoding="utf-8")
    wide.save_pretrained(folder)
    described = load_config(folder) | {
        "architectures": [f"PerLayer{base}"],
        "auto_map": {"AutoModelForCausalLM": f"{MODULE}.PerLayer{base}"},
        "per_layer_config": list_overrides(model, groups, kept, wide),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    smaller = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    smaller.load_state_dict(state, strict=True)
    return smaller.to(model.device).eval()


def list_overrides(
    model: Any, groups: Sequence[Units], kept: Kept, wide: Any
) -> dict[str, dict[str, int]]:
    """Return, by the number of the layer, what its config has other than the widest one's."""
    names = [*FFN_WIDTHS, own_name(wide, "num_attention_heads"), "num_key_value_heads"]
    overrides = {}
    for layer in range(model.config.num_hidden_layers):
        own = [(g, m) for g, m in zip(groups, kept, strict=True) if g.layer == layer]
        num_kept = {g.kind: int(m.sum()) for g, m in own}
        narrow = smaller_config(name_class(model), groups, num_kept).to_dict()
        overrides[str(layer)] = {
            name: narrow[name]
            for name in names
            if name in narrow and narrow[name] != wide.to_dict().get(name)
        }
    return {layer: settings for layer, settings in overrides.items() if settings}
