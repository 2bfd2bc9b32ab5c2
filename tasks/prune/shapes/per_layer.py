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

from tasks.models.folder import load_config
from tasks.prune.shapes.absent import find_names, list_absent
from tasks.prune.shapes.stock_class import name_class
from tasks.prune.shapes.stock_config import FFN_WIDTHS, own_name, smaller_config
from tasks.prune.units.units import Kept, Units, find_layers

MODULE = "modeling_per_layer"

SOURCE = '''"""{base} with each layer as wide as `per_layer_config` in config.json says."""

{imports}from transformers import {imported}


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

ABSENT = '''        for name, numbers in config.absent_sublayers.items():
            for index in numbers:
                setattr(layers[index], name, Absent(index if name == "{attention}" else None))


class Absent(torch.nn.Module):
    """Adds nothing to the residual stream, where `absent_sublayers` in config.json says so."""

    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states, *given, **named):
        nothing = torch.zeros_like(hidden_states)
        if self.layer_idx is None:
            return nothing
        for cache in (*given, *named.values()):
            if isinstance(cache, Cache):  # it counts tokens by a layer's entries
                entry = nothing[:, None, :, :1]
                cache.update(entry, entry, self.layer_idx)
        return nothing, None
'''
"""What follows where sublayers are absent; `attention` is what the layers call theirs."""


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
    absent = list_absent(model, groups, kept)
    source = write_source(base, model, groups, absent)
    (folder / f"{MODULE}.py").write_text(source, encoding="utf-8")
    wide.save_pretrained(folder)
    described = load_config(folder) | {
        "architectures": [f"PerLayer{base}"],
        "auto_map": {"AutoModelForCausalLM": f"{MODULE}.PerLayer{base}"},
        "per_layer_config": list_overrides(model, groups, kept, wide),
    }
    if absent:
        described["absent_sublayers"] = absent
    (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    smaller = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    smaller.load_state_dict(state, strict=True)
    return smaller.to(model.device).eval()


def write_source(
    base: str, model: Any, groups: Sequence[Units], absent: dict[str, list[int]]
) -> str:
    layers = find_layers(model)
    if not absent:
        return SOURCE.format(base=base, layers=layers, imports="", imported=base)
    source = SOURCE.format(
        base=base, layers=layers, imports="import torch\n", imported=f"Cache, {base}"
    )
    return source + ABSENT.format(attention=find_names(model, groups)["kv_groups"])


def list_overrides(
    model: Any, groups: Sequence[Units], kept: Kept, wide: Any
) -> dict[str, dict[str, int]]:
    """Return, by the number of the layer, what its config has other than the widest one's."""
    names = [*FFN_WIDTHS, own_name(wide, "num_attention_heads"), "num_key_value_heads"]
    overrides = {}
    for layer in range(model.config.num_hidden_layers):
        pairs = zip(groups, kept, strict=True)
        own = [(g, m) for g, m in pairs if g.layer == layer and m.any()]
        num_kept = {g.kind: int(m.sum()) for g, m in own}
        narrow = smaller_config(name_class(model), groups, num_kept).to_dict()
        overrides[str(layer)] = {
            name: narrow[name]
            for name in names
            if name in narrow and narrow[name] != wide.to_dict().get(name)
        }
    return {layer: settings for layer, settings in overrides.items() if settings}
