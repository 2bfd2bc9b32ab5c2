"""A model whose linear layers are kept as two thin ones: the config's ranks, and code for them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.models.folder import load_config
from tasks.models.low_rank import Factors
from tasks.models.model_kind import AUTO_CLASSES, auto_class, head_kind

MODULE = "modeling_low_rank"

SOURCE = '''"""{base} with linear layers as two thin ones, of the ranks that config.json says."""

import torch
from transformers import {base}


class LowRank{base}({base}):
    """Built as {base} is; then each layer named in `low_rank` is split: x -> rank -> out."""

    def __init__(self, config):
        super().__init__(config)
        for name, rank in config.low_rank.items():
            whole = self.get_submodule(name)
            thin = torch.nn.Linear(whole.in_features, rank, bias=False)
            wide = torch.nn.Linear(rank, whole.out_features, bias=whole.bias is not None)
            parent, _, own = name.rpartition(".")
            setattr(self.get_submodule(parent), own, torch.nn.Sequential(thin, wide))
'''
"""The modelling file; `base` is the stock class."""


def build_factored(model: Any, factors: Mapping[str, Factors]) -> Any:
    """Make the model of thin layers; saving it writes its code, and it loads with that code only.

    Args:
        model: A stock model.
        factors: By the name of the weight that they stand for.
    """
    from transformers import AutoConfig

    base = type(model).__name__
    linears = {name.removesuffix(".weight"): f for name, f in factors.items()}
    state: dict[str, torch.Tensor] = dict(model.state_dict())
    for name, (wide, thin, _) in linears.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.0.weight": thin, f"{name}.1.weight": wide}
        if f"{name}.bias" in state:
            state[f"{name}.1.bias"] = state.pop(f"{name}.bias")
    with tempfile.TemporaryDirectory(prefix="nightpress-") as name:
        folder = Path(name)
        (folder / f"{MODULE}.py").write_text(SOURCE.format(base=base), encoding="utf-8")
        model.config.save_pretrained(folder)
        described = load_config(folder) | {
            "architectures": [f"LowRank{base}"],
            "auto_map": {AUTO_CLASSES[head_kind(base)]: f"{MODULE}.LowRank{base}"},
            "low_rank": {linear: len(f.thin) for linear, f in linears.items()},
        }
        (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        smaller = auto_class(config).from_config(
            config, dtype=torch.float32, trust_remote_code=True
        )
    smaller.load_state_dict(state, strict=True)
    return smaller.to(model.device)
