"""The config of the smaller model, and proof that stock code builds that shape from it.

Nothing here knows which families can give up heads: the family's own code is asked, by building
the smaller model without storage and holding its shapes against what slicing would leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tasks.prune.slicing import slice_weights
from tasks.prune.units import KINDS, NAMES, Sublayer, head_size

FFN_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")
"""Names that families' configs give to the FFN width."""


def empty_model(config: Any, trust_remote_code: bool = False) -> Any:
    """Build a model without storage."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def stock_config(
    model: Any, sublayers: list[Sublayer], num_kept: dict[str, int], trust_remote_code: bool
) -> Any:
    """Return the smaller model's config, after holding what stock code builds from it against
    what slicing would leave.

    Raises:
        ValueError: stock code does not build that shape.
    """
    changed = [
        kind
        for kind in num_kept
        if any(s.num_units != num_kept[kind] for s in sublayers if s.kind == kind)
    ]
    reasons = {}
    for kinds in (changed, *([kind] for kind in num_kept)):
        kept_widths = {kind: num_kept[kind] for kind in kinds}
        try:
            config = smaller_config(model.config, sublayers, kept_widths)
            built = empty_model(config, trust_remote_code).state_dict()
        except ValueError as error:
            reasons[tuple(kinds)] = str(error).splitlines()[-1].strip()
            continue
        cut = [s for s in sublayers if s.kind in kinds]
        kept = [np.arange(s.num_units) < num_kept[s.kind] for s in cut]
        sliced = slice_weights(model, cut, kept)
        if {n: t.shape for n, t in built.items()} != {n: t.shape for n, t in sliced.items()}:
            reasons[tuple(kinds)] = "its stock code ties widths together that a cut would part"
        elif kinds is changed:
            return config
    refused = [kind for kind in num_kept if (kind,) in reasons] or changed
    good = set(num_kept) - set(refused)
    reason = reasons[tuple(changed)]
    raise ValueError(cannot_cut(model.config.model_type, refused, good, reason))


def cannot_cut(family: str, kinds: list[str], prunable: set[str], reason: str) -> str:
    can = ", ".join(f"{kind}: 0.5" for kind in KINDS if kind in prunable)
    remedy = f"it can be pruned as sparsity: {{{can}}}" if can else "nothing in it can be pruned"
    names = " or ".join(NAMES[kind] for kind in kinds)
    return f"{family} cannot give up {names} ({reason}); {remedy}"


def smaller_config(config: Any, sublayers: list[Sublayer], num_kept: dict[str, int]) -> Any:
    """Return a config with the given numbers of units, and an explicit head_dim.

    A llama whose config refuses the head count becomes a mistral, which computes the same without
    biases and with `sliding_window=None`.

    Raises:
        ValueError: the family's config refuses the numbers.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MistralConfig

    values = config.to_dict()
    if "ffn" in num_kept:
        (width,) = {s.num_units for s in sublayers if s.kind == "ffn"}
        names = [name for name in FFN_WIDTHS if values.get(name) == width]
        values |= dict.fromkeys(names, num_kept["ffn"])
    if "kv_groups" in num_kept:
        first = next(s for s in sublayers if s.kind == "kv_groups")
        values["head_dim"] = head_size(config)
        values["num_attention_heads"] = (
            num_kept["kv_groups"] * first.unit_width // head_size(config)
        )
        values["num_key_value_heads"] = 1 if first.fixed else num_kept["kv_groups"]
    try:
        return type(config)(**values)
    except (ValueError, StrictDataclassError) as error:
        biased = values.get("attention_bias") or values.get("mlp_bias")
        if config.model_type != "llama" or biased:
            raise ValueError(str(error)) from None
    for name in ("model_type", "pretraining_tp", "attention_bias", "mlp_bias"):
        values.pop(name, None)
    return MistralConfig(
        **values | {"sliding_window": None, "architectures": ["MistralForCausalLM"]}
    )
