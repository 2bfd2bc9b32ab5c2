"""The config of the smaller model, and proof that stock code builds that model from it.

Nothing here knows which families can give up heads: the family's own code is asked, by building
the smaller model without storage and holding it against what slicing would leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.prune.shapes.embedding_scale import follows_hidden_size
from tasks.prune.shapes.stock_class import empty_model, name_class
from tasks.prune.units.slicing import slice_weights
from tasks.prune.units.units import NAMES, Kept, Sublayer, Units, find_layers, head_size

FFN_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")
"""Names that families' configs give to the FFN width; None stands for the usual one."""

EXPERT_COUNTS = ("num_experts", "num_local_experts")


def stock_config(
    model: Any,
    groups: Sequence[Units],
    num_kept: dict[str, int],
    trust_remote_code: bool,
    layers: NDArray[np.bool_] | None = None,
) -> Any:
    """Return the smaller model's config, after holding what stock code builds from it against
    what slicing would leave.

    Args:
        layers: Which layers stay, where that is known; else the proof is led for two choices,
            and the config's lists are those of the first layers.

    Raises:
        ValueError: stock code does not build that model; says why.
    """
    if any(g.kind == "sublayers" and num_kept[g.kind] < g.num_units for g in groups):
        raise ValueError("a stock layer has both of its sublayers")
    number = model.config.num_hidden_layers
    first = np.arange(number) < num_kept.get("layers", number)
    choices = [np.roll(first, 1), first[::-1]] if layers is None else [layers]
    config = name_class(model)
    dense = empty_model(config, trust_remote_code)
    for choice in choices if "layers" in num_kept else [first]:
        smaller = smaller_config(config, groups, num_kept, choice)
        kept = [
            choice if g.kind == "layers" else np.arange(g.num_units) < num_kept[g.kind]
            for g in groups
        ]
        built = empty_model(smaller, trust_remote_code)
        sliced = slice_weights(dense, groups, kept)
        if {n: t.shape for n, t in built.state_dict().items()} != {
            n: t.shape for n, t in sliced.items()
        }:
            raise ValueError("its stock code ties widths together that a cut would part")
        check_settings(dense, built, choice)
    return smaller_config(config, groups, num_kept, first if layers is None else layers)


def config_of_cut(
    model: Any, groups: Sequence[Units], kept: Kept, trust_remote_code: bool = False
) -> Any:
    """Return the config for exactly these units, as `stock_config` does."""
    num_kept = {g.kind: int(mask.sum()) for g, mask in zip(groups, kept, strict=True)}
    layers = [mask for g, mask in zip(groups, kept, strict=True) if g.kind == "layers"]
    return stock_config(model, groups, num_kept, trust_remote_code, *layers)


def check_settings(dense: Any, built: Any, layers: NDArray[np.bool_]) -> None:
    """Make sure that no factor or flag in the code depends on a width or on a layer's number.

    Raises:
        ValueError: one does.
    """
    path = find_layers(dense)
    names = {f"{path}.{new}": f"{path}.{old}" for new, old in enumerate(np.flatnonzero(layers))}
    depth = path.count(".") + 2
    modules = dict(dense.named_modules())
    for place, module in built.named_modules():
        if not place.startswith(f"{path}.") and not module._parameters:
            continue
        head, tail = place.split(".")[:depth], place.split(".")[depth:]
        original = modules[".".join([names.get(".".join(head), ".".join(head)), *tail])]
        if all(follows_hidden_size(m, of.config) for m, of in ((module, built), (original, dense))):
            continue  # folded into the weights
        for name, value in vars(module).items():
            if name in vars(original) and _fixed(value) != _fixed(vars(original)[name]):
                raise ValueError(
                    f"{type(original).__name__} has {name} = {vars(original)[name]}, "
                    f"which would become {value}"
                )


def _fixed(setting: Any) -> Any:
    """Return what must stay of a module's attribute: of a size, only that there is one."""
    if isinstance(setting, float | str | bool):
        return setting
    return isinstance(setting, int)


def smaller_config(
    config: Any,
    groups: Sequence[Units],
    num_kept: dict[str, int],
    layers: NDArray[np.bool_] | None = None,
) -> Any:
    """Return a config with the given numbers of units, and an explicit head_dim.

    A llama whose config refuses the head count becomes a mistral, which computes the same without
    biases and with `sliding_window=None`.

    Args:
        layers: Which layers stay, [num_layers]; needed where `layers` are cut.

    Raises:
        ValueError: the family's config refuses the numbers.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MistralConfig

    values = config.to_dict()
    if "ffn" in num_kept:
        (width,) = {g.num_units for g in groups if g.kind == "ffn"}
        names = [name for name in FFN_WIDTHS if values.get(name, 0) in (width, None)]
        values |= dict.fromkeys(names, num_kept["ffn"])
    if "experts" in num_kept:
        names = [name for name in EXPERT_COUNTS if name in values]
        values |= dict.fromkeys(names, num_kept["experts"])
    if "kv_groups" in num_kept or "hidden" in num_kept:
        values["head_dim"] = head_size(config)
    if "kv_groups" in num_kept:
        first = next(g for g in groups if isinstance(g, Sublayer) and g.kind == "kv_groups")
        num_heads = num_kept["kv_groups"] * first.unit_width // head_size(config)
        values[own_name(config, "num_attention_heads")] = num_heads
        values["num_key_value_heads"] = 1 if first.fixed else num_kept["kv_groups"]
    if "hidden" in num_kept:
        values[own_name(config, "hidden_size")] = num_kept["hidden"]
    if "layers" in num_kept:
        assert layers is not None
        values[own_name(config, "num_hidden_layers")] = num_kept["layers"]
        for name, value in values.items():
            if "layer" in name and isinstance(value, list) and len(value) == len(layers):
                values[name] = [v for v, stays in zip(value, layers, strict=True) if stays]
    try:
        return type(config)(**values)
    except (ValueError, StrictDataclassError) as error:
        reason = str(error).splitlines()[-1].strip()
        biased = values.get("attention_bias") or values.get("mlp_bias")
        if config.model_type != "llama" or biased:
            raise ValueError(reason) from None
    for name in ("model_type", "pretraining_tp", "attention_bias", "mlp_bias"):
        values.pop(name, None)
    names = config.architectures or ["LlamaForCausalLM"]
    values["architectures"] = [name.replace("Llama", "Mistral") for name in names]
    return MistralConfig(**values | {"sliding_window": None})


def accepts_numbers(config: Any, groups: Sequence[Units], num_kept: dict[str, int]) -> bool:
    """Say whether a config takes these numbers together; any number of layers will do."""
    cut = {kind: number for kind, number in num_kept.items() if kind != "layers"}
    try:
        smaller_config(config, groups, cut)
    except ValueError:
        return False
    return True


def own_name(config: Any, name: str) -> str:
    """Return what the family's config calls a setting."""
    return str(config.attribute_map.get(name, name))


def cannot_cut(family: str, kinds: list[str], prunable: list[str], reason: str) -> str:
    can = ", ".join(f"{kind}: 0.5" for kind in prunable if kind not in kinds)
    remedy = f"it can be pruned as sparsity: {{{can}}}" if can else "nothing in it can be pruned"
    names = " or ".join(NAMES[kind] for kind in kinds)
    return f"{family} cannot give up {names} ({reason}); {remedy}"
