"""Which shape a sparsity leads to, and what is refused before anything expensive."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    OPTConfig,
    Qwen3MoeConfig,
)

from tasks.prune.shapes.shape import Shape, check_prunable, choose_shape
from tasks.prune.shapes.stock_class import empty_model
from tasks.prune.shapes.widths import Matrices, choose_widths, removed
from tasks.prune_options import PruneOptions


def options(sparsity: Any, **others: Any) -> dict[str, Any]:
    return PruneOptions(sparsity=sparsity, **others).model_dump()


def llama(**overrides: Any) -> Any:
    """A Llama of 192 wide with 6 heads of 32 in 3 KV groups and an FFN of 512, without storage."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
    }
    return empty_model(LlamaConfig(**(sizes | overrides)))


def shape_of(sparsity: Any, alignment: int = 1, **others: Any) -> Shape:
    return choose_shape(llama(), options(sparsity, **others), alignment)


def test_one_fraction_is_met_by_the_finer_widths() -> None:
    """KV groups can only go to 2 of 3, so the FFN gives more: exactly half in all."""
    shape = shape_of(0.5, alignment=32)
    assert shape.num_kept == {"kv_groups": 2, "ffn": 224}
    assert shape.got["all"] == 0.5
    assert str(shape) == "KV groups 3 -> 2, FFN 512 -> 224: 50.0% removed"
    assert shape.config.num_attention_heads == 4


def test_a_fraction_per_kind() -> None:
    shape = shape_of({"ffn": 0.5, "kv_groups": 0.33}, alignment=32)
    assert shape.num_kept == {"kv_groups": 2, "ffn": 256}
    assert shape.got["ffn"] == 0.5
    assert shape.got["kv_groups"] == pytest.approx(1 / 3, abs=1e-6)


def test_a_kind_that_is_not_named_stays_whole() -> None:
    assert shape_of({"ffn": 0.25}).num_kept == {"kv_groups": 3, "ffn": 384}


def test_bad_rounding_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"asked for 0\.500.*removes 0\.333.*allow_rounding"):
        shape_of({"ffn": 0.5, "kv_groups": 0.5})
    assert shape_of({"ffn": 0.5, "kv_groups": 0.5}, allow_rounding=True).num_kept["kv_groups"] == 2


def test_an_alignment_that_no_width_meets_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no width up to 192 is a multiple of 1024.*group_size"):
        shape_of(0.5, alignment=1024)


def test_reads_only_the_config(tmp_path: Path) -> None:
    llama().config.save_pretrained(tmp_path)
    shape = check_prunable(tmp_path, options({"ffn": 0.5}), alignment=16)
    assert shape.num_kept["ffn"] == 256


@settings(max_examples=40, deadline=None)
@given(
    num_groups=st.integers(1, 12),
    ffn=st.integers(1, 700),
    alignment=st.sampled_from([1, 4, 16, 32]),
    density=st.floats(0.05, 1),
)
def test_every_kept_width_obeys_the_alignment(
    num_groups: int, ffn: int, alignment: int, density: float
) -> None:
    def matrices(num_units: int, width: int, per_unit: int) -> Matrices:
        choices = tuple(n for n in range(1, num_units + 1) if n * width % alignment == 0)
        return Matrices(num_units, per_unit, 0, choices)

    both = {"kv_groups": matrices(num_groups, 32, 900), "ffn": matrices(ffn, 1, 60)}
    if not both["ffn"].choices:
        return
    kept = choose_widths(both, {"all": 1 - density})
    assert kept["ffn"] % alignment == 0
    assert 1 <= kept["kv_groups"] <= num_groups
    assert 0 <= removed(both, kept)["all"] < 1
    per_kind = choose_widths(both, {"ffn": 1 - density, "kv_groups": 0.0})
    assert per_kind["kv_groups"] == num_groups
    assert all(
        abs(per_kind["ffn"] - ffn * density) <= abs(other - ffn * density)
        for other in both["ffn"].choices
    )


SMALL = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_HEADS = {
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_inner=64),
    "opt": OPTConfig(**SMALL, hidden_size=32, ffn_dim=64, word_embed_proj_dim=32),
    "gpt_neox": GPTNeoXConfig(**SMALL, hidden_size=32, intermediate_size=64),
    "olmo2": Olmo2Config(
        **SMALL, hidden_size=32, intermediate_size=64, num_key_value_heads=4, pad_token_id=0
    ),
}


@pytest.mark.parametrize("family", sorted(NO_HEADS))
def test_families_that_cannot_give_up_heads_say_what_they_can(family: str) -> None:
    model = empty_model(NO_HEADS[family])
    for sparsity in (0.5, {"ffn": 0.5, "kv_groups": 0.5}):
        with pytest.raises(ValueError, match=rf"{family} cannot give up KV groups.*\{{ffn: 0.5, "):
            choose_shape(model, options(sparsity), 1)
    shape = choose_shape(model, options({"ffn": 0.5}), 1)
    assert shape.num_kept["ffn"] == 32


def test_a_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"llama cannot give up experts .found no experts.*ffn"):
        choose_shape(llama(), options({"experts": 0.5}), 1)


def test_a_width_that_the_config_leaves_open() -> None:
    """GPT-2's FFN is four times as wide as the stream unless the config says otherwise."""
    model = empty_model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))
    shape = choose_shape(model, options({"ffn": 0.25}), 1)
    assert shape.num_kept["ffn"] == shape.config.n_inner == 96


def test_layers_and_hidden_dimensions_multiply() -> None:
    model = llama(num_hidden_layers=4)
    shape = choose_shape(model, options({"layers": 0.3, "hidden": 0.5}, allow_rounding=True), 32)
    assert shape.num_kept == {"kv_groups": 3, "ffn": 512, "hidden": 96, "layers": 3}
    assert shape.got == {"kv_groups": 0, "ffn": 0, "hidden": 0.5, "layers": 0.25, "all": 0.625}
    assert (shape.config.num_hidden_layers, shape.config.hidden_size) == (3, 96)
    assert shape.config.head_dim == 32


def test_the_hidden_size_is_aligned_and_one_that_the_config_takes() -> None:
    assert shape_of({"hidden": 0.4}, alignment=32, allow_rounding=True).num_kept["hidden"] == 128
    gemma = empty_model(
        Gemma2Config(**SMALL, hidden_size=32, intermediate_size=64, num_key_value_heads=2)
    )
    shape = choose_shape(gemma, options({"hidden": 0.4}, allow_rounding=True), 1)
    assert shape.num_kept["hidden"] == 20  # 19 is no multiple of 4 heads


def test_at_least_as_many_experts_stay_as_a_token_needs() -> None:
    sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "num_experts": 8}
    model = empty_model(Qwen3MoeConfig(**SMALL, **sizes, num_experts_per_tok=4))
    shape = choose_shape(model, options({"experts": 0.9}, allow_rounding=True), 1)
    assert shape.num_kept["experts"] == shape.config.num_experts == 4


def test_biases_rule_out_mistral() -> None:
    """3 heads do not divide 32, and mistral has no biases: the reason and the remedy are told."""
    model = llama(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        attention_bias=True,
    )
    with pytest.raises(ValueError, match=r"hidden size \(32\) is not a multiple.*\{ffn: 0.5, "):
        choose_shape(model, options({"ffn": 0.5, "kv_groups": 0.25}), 1)


def test_the_smaller_config_builds_in_stock_code(tmp_path: Path) -> None:
    shape_of(0.5, alignment=32).config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert model.model.layers[0].mlp.down_proj.in_features == 224
    assert model.model.layers[0].self_attn.o_proj.in_features == 128
