"""Masked equals sliced, on every family and every kind of attention; and what cannot be sliced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tasks.models.checkpoint import load_model
from tasks.prune.shapes.stock_config import smaller_config
from tasks.prune.units.masking import masked, masked_side_by_side
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune.units.units import Kept, Sublayer, find_sublayers

FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Largest difference, as a fraction of the largest logit."""


def build_model(family: str, num_groups: int, heads_per_group: int, **overrides: Any) -> Any:
    """Make a random model whose every weight matters, biases included."""
    sizes = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": num_groups * heads_per_group,
        "num_key_value_heads": num_groups,
        "head_dim": 8,
        "max_position_embeddings": 32,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**(sizes | overrides))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def draw_kept(sublayers: list[Sublayer], num_kept: dict[str, int], seed: int) -> Kept:
    """Keep other units in each layer, the same number in all."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(s.num_units) < num_kept[s.kind] for s in sublayers]


def compare(model: Any, num_kept: dict[str, int], seed: int, dtype: torch.dtype) -> Any:
    """Assert that masked equals sliced; return the smaller model's config."""
    model = model.to(dtype)
    sublayers = find_sublayers(model)
    assert [s.kind for s in sublayers] == ["kv_groups", "ffn"] * model.config.num_hidden_layers
    kept = draw_kept(sublayers, num_kept, seed)
    config = smaller_config(model.config, sublayers, num_kept)
    sliced = build_sliced(config, slice_weights(model, sublayers, kept), trust_remote_code=False)
    ids = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        with masked(model, sublayers, kept):
            expected = model(ids).logits
        got = sliced(ids).logits
        assert not torch.allclose(expected, model(ids).logits), "the mask did nothing"
    assert float((got - expected).abs().max() / expected.abs().max()) < TOLERANCE[dtype]
    return config


@settings(max_examples=30, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    attention=st.sampled_from([(4, 1), (3, 2), (2, 3), (1, 4)]),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    data=st.data(),
)
def test_masked_equals_sliced(
    family: str, attention: tuple[int, int], tied: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    """MHA, GQA and MQA; tied or not. Llama's head counts here all need mistral's config or fit."""
    model = build_model(family, *attention, tie_word_embeddings=tied)
    units = {s.kind: s.num_units for s in find_sublayers(model)}
    num_kept = {
        "kv_groups": data.draw(st.integers(1, units["kv_groups"]), "kv_groups"),
        "ffn": data.draw(st.integers(1, units["ffn"] - 1), "ffn"),
    }
    config = compare(model, num_kept, data.draw(st.integers(0, 99), "seed"), dtype)
    assert config.head_dim == 8
    assert config.intermediate_size == num_kept["ffn"]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_biases_are_sliced_too(dtype: torch.dtype) -> None:
    model = build_model("llama", 4, 1, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    config = compare(model, {"kv_groups": 2, "ffn": 7}, seed=3, dtype=dtype)
    assert config.model_type == "llama"


def test_multi_query_attention_keeps_its_only_group() -> None:
    model = build_model("llama", 1, 4)
    (first, *_) = find_sublayers(model)
    assert (first.num_units, first.unit_width, len(first.fixed)) == (4, 8, 2)
    config = smaller_config(model.config, find_sublayers(model), {"kv_groups": 3})
    assert (config.num_attention_heads, config.num_key_value_heads) == (3, 1)


def test_a_head_count_that_llama_refuses_is_saved_as_mistral(tmp_path: Path) -> None:
    """Hidden size 24 is no multiple of 5 heads: mistral computes the same and does not mind."""
    model = build_model("llama", 6, 1)
    sublayers = find_sublayers(model)
    num_kept = {"kv_groups": 5, "ffn": 20}
    config = compare(model, num_kept, seed=1, dtype=torch.float32)
    assert (config.model_type, config.sliding_window) == ("mistral", None)

    kept = draw_kept(sublayers, num_kept, seed=1)
    sliced = build_sliced(config, slice_weights(model, sublayers, kept), trust_remote_code=False)
    sliced.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "MistralForCausalLM"
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, sliced(ids).logits)


def test_sub_models_side_by_side_do_not_see_each_other(make_llama: Callable[..., Path]) -> None:
    model = load_model(make_llama(seed=3))
    sublayers = find_sublayers(model)
    rng = np.random.default_rng(0)
    submodels = [[rng.random(s.num_units) < 0.5 for s in sublayers] for _ in range(3)]
    ids = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with masked_side_by_side(model, sublayers, submodels, len(ids)):
            together = model(ids.repeat(3, 1)).logits.split(len(ids))
        for kept, logits in zip(submodels, together, strict=True):
            with masked(model, sublayers, kept):
                torch.testing.assert_close(logits, model(ids).logits)
