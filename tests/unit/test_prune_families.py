"""Masked equals sliced: every kind of unit, in every family that has it; else a clear refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from tasks.prune.shapes.prunable import find_groups
from tasks.prune.shapes.shape import choose_shape
from tasks.prune.shapes.stock_class import make_model
from tasks.prune.shapes.stock_config import config_of_cut
from tasks.prune.units.groups import find_units
from tasks.prune.units.masking import masked
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune.units.units import (
    NAMES,
    Kept,
    Units,
    find_sublayers,
    parameters_per_unit,
    weights_by_unit,
)
from tasks.prune_options import PruneOptions

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Largest difference, as a fraction of the largest logit."""

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
MOE = GROUPED | {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": GROUPED,
    "gemma2": GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "phi": GROUPED,
    "gpt2": SIZES | {"n_inner": 20},
    "opt": SIZES | {"ffn_dim": 20, "word_embed_proj_dim": 32},
    "gpt_neox": SIZES,
    "bert": SIZES,
    "distilbert": SIZES | {"hidden_dim": 20},
    "roberta": SIZES,
    "qwen3_moe": MOE | {"num_experts": 5},
    "olmo2": GROUPED,
    "mixtral": MOE | {"num_local_experts": 5},
}
DENSE = {"kv_groups", "ffn", "hidden", "layers"}
DERIVED = {"ffn", "layers"}
"""What families can give up whose head size follows from the hidden size."""
PRUNABLE = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi"), DENSE)
PRUNABLE |= dict.fromkeys(("gpt2", "opt", "gpt_neox"), DERIVED)
PRUNABLE |= dict.fromkeys(("bert", "distilbert", "roberta"), DERIVED)
PRUNABLE |= {family: DENSE - {"ffn"} | {"experts"} for family in ("qwen3_moe", "mixtral")}
PRUNABLE["olmo2"] = DENSE - {"kv_groups"}
KINDS = ("kv_groups", "ffn", "experts", "hidden", "layers")
NUM_KEPT = {"kv_groups": 1, "ffn": 7, "experts": 3, "hidden": 20, "layers": 2}


def build(family: str, **overrides: Any) -> Any:
    """Make a random model whose every weight matters, biases included."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family] | overrides)
    model = make_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def draw(model: Any, kinds: set[str], seed: int = 1) -> tuple[list[Units], Kept]:
    groups = find_units(model, kinds)
    rng = np.random.default_rng(seed)
    return groups, [rng.permutation(g.num_units) < NUM_KEPT[g.kind] for g in groups]


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def compare(
    model: Any, units: tuple[list[Units], Kept], dtype: torch.dtype, tolerance: float | None = None
) -> Any:
    """Assert that masked equals sliced; return the smaller model."""
    model = model.to(dtype)
    groups, kept = units
    config = config_of_cut(model, groups, kept)
    sliced = build_sliced(config, slice_weights(model, groups, kept), trust_remote_code=False)
    for either in (model, sliced):  # the faster way to run experts has no fp64
        either.set_experts_implementation("eager")
    dense = logits(model)
    with masked(model, groups, kept):
        expected = logits(model)
    assert torch.equal(logits(model), dense), "the mask was left on"
    everything = all(mask.all() for mask in kept)
    assert everything or not torch.allclose(expected, dense), "the mask did nothing"
    difference = (logits(sliced) - expected).abs().max() / expected.abs().max()
    assert float(difference) < (tolerance or TOLERANCE[dtype])
    return sliced


CELLS = [(family, kind) for family in FAMILIES for kind in KINDS if kind in PRUNABLE[family]]
REFUSED = [(family, kind) for family in FAMILIES for kind in KINDS if kind not in PRUNABLE[family]]


@pytest.mark.parametrize(("family", "kind"), CELLS)
def test_masked_equals_sliced(family: str, kind: str) -> None:
    model = build(family, tie_word_embeddings=False)
    for dtype in TOLERANCE:
        compare(model, draw(model, {kind}), dtype)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_kinds_at_once(family: str, tied: bool) -> None:
    model = build(family, tie_word_embeddings=tied)
    sliced = compare(model, draw(model, PRUNABLE[family]), torch.float32)
    assert sliced.num_parameters() < model.num_parameters()
    assert type(sliced) is type(model)


@pytest.mark.parametrize(("family", "kind"), REFUSED)
def test_what_stock_code_cannot_hold_is_refused(family: str, kind: str) -> None:
    model = build(family)
    can = ", ".join(f"{kind}: 0.5" for kind in KINDS if kind in PRUNABLE[family])
    with pytest.raises(ValueError, match=rf"{family} cannot give up {NAMES[kind]} .*{{{can}}}"):
        choose_shape(model, PruneOptions(sparsity={kind: 0.5}).model_dump(), 1)


@settings(max_examples=100, deadline=None)
@given(
    family=st.sampled_from([f for f in FAMILIES if "kv_groups" in PRUNABLE[f]]),
    attention=st.sampled_from([(4, 1), (3, 2), (2, 3), (1, 4)]),
    dtype=st.sampled_from(list(TOLERANCE)),
    tied=st.booleans(),
    data=st.data(),
)
def test_random_shapes(
    family: str, attention: tuple[int, int], dtype: torch.dtype, tied: bool, data: st.DataObject
) -> None:
    """MHA, GQA and MQA; any layers, any widths, any number of kinds at once."""
    num_groups, heads_per_group = attention
    sizes = {
        "num_attention_heads": num_groups * heads_per_group,
        "num_key_value_heads": num_groups,
        "hidden_size": 12 * data.draw(st.integers(1, 3), "hidden"),
        "num_hidden_layers": data.draw(st.integers(1, 4), "layers"),
        "head_dim": data.draw(st.sampled_from([4, 8]), "head_dim"),
        "attention_bias": data.draw(st.booleans(), "bias"),
        "tie_word_embeddings": tied and family != "gemma2",  # see the test below
    }
    model = build(family, **sizes)
    kinds = data.draw(st.sets(st.sampled_from(sorted(PRUNABLE[family])), min_size=1), "kinds")
    groups = find_units(model, kinds)
    num_kept = {g.kind: data.draw(st.integers(g.least, g.num_units), g.kind) for g in groups}
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    kept = [rng.permutation(g.num_units) < num_kept[g.kind] for g in groups]
    # Gemma's embeddings are scaled anew and then rounded to float32 in its norms: to one side or,
    # seldom, to the other.
    rounds = family == "gemma2" and "hidden" in kinds and dtype is torch.float64
    try:
        compare(model, (groups, kept), dtype, 1e-6 if rounds else None)
    except ValueError as error:  # a config that wants a hidden size that the heads divide
        assume("not a multiple of the number of attention heads" not in str(error))
        raise


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_units_own_what_the_slices_say(family: str) -> None:
    """Where units are off, what they own may hold anything: fused and transposed weights too."""
    model = build(family).double()
    model.set_experts_implementation("eager")
    kinds = {"kv_groups", "ffn", "experts"} & {g.kind for g in find_groups(model, [], False)}
    groups = find_units(model, kinds)
    kept = [np.arange(g.num_units) % 5 < 2 for g in groups]
    torch.manual_seed(1)
    with masked(model, groups, kept):
        before = logits(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for group, mask in zip(groups, kept, strict=True):
            for part in group.slices:
                rows = parameters[part.name].data.movedim(part.dim, 0)
                for unit in np.flatnonzero(~mask):
                    first = part.start + unit * part.width
                    rows[first : first + part.width].normal_()
        assert torch.allclose(logits(model), before, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits(model), before)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_weights_are_sorted_by_unit(family: str) -> None:
    """A unit's inputs through its own rows, and its columns, are its share of the sublayer."""
    model = build(family).double()
    ffn = [s for s in find_sublayers(model) if s.kind == "ffn"][1]
    readers_UrD, writer_UwD = weights_by_unit(model, ffn)
    assert readers_UrD.shape == (20, len(ffn.readers), 32)
    inputs: list[torch.Tensor] = []
    reader = model.get_submodule(ffn.readers[0][0])
    reader.register_forward_hook(lambda _, x, y: inputs.extend([x[0], y]))
    writer = model.get_submodule(ffn.writer)
    writer.register_forward_hook(lambda _, x, y: inputs.extend([x[0], y]))
    logits(model)
    x, read, activated, written = (t.reshape(-1, t.shape[-1]) for t in inputs)
    bias = 0 if reader.bias is None else reader.bias
    torch.testing.assert_close(x @ readers_UrD[:, 0].T + bias, read)
    bias = 0 if writer.bias is None else writer.bias
    torch.testing.assert_close(activated @ writer_UwD[:, 0] + bias, written)


def test_parameters_are_counted_per_unit() -> None:
    """What the model loses when one unit goes, tied embeddings once."""
    model = build("llama", tie_word_embeddings=True)
    for kind in ("kv_groups", "ffn", "hidden", "layers"):
        groups = find_units(model, [kind])
        kept = [np.arange(g.num_units) > 0 for g in groups]
        config = config_of_cut(model, groups, kept)
        sliced = build_sliced(config, slice_weights(model, groups, kept), False)
        lost = model.num_parameters() - sliced.num_parameters()
        assert lost == sum(parameters_per_unit(model, group) for group in groups)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sublayers_are_switched_off_but_stock_code_has_them(family: str) -> None:
    """With all of them off nothing but the embeddings, norms and the head is left."""
    model = build(family)
    groups = find_units(model, ["sublayers"])
    (group,) = groups
    assert group.num_units == 6
    with masked(model, groups, [np.zeros(6, dtype=bool)]):
        found = logits(model)
        swapped = model(torch.tensor([[7, 8, 9]])).logits[0, 2]
        alone = model(torch.tensor([[8, 7, 9]])).logits[0, 2]
    assert torch.equal(swapped, alone), "a token still saw another one"
    assert not torch.allclose(found, logits(model))
    with pytest.raises(ValueError, match=r"a stock layer has both of its sublayers"):
        config_of_cut(model, groups, [np.arange(6) > 0])


def test_gemma_with_shared_embeddings_keeps_its_logits() -> None:
    """The factor goes into a norm that computes in fp32, whatever the model's type."""
    model = build("gemma2", tie_word_embeddings=True)
    sliced = compare(model, draw(model, {"hidden"}), torch.float64, tolerance=1e-6)
    assert sliced.lm_head.weight is sliced.model.embed_tokens.weight


def test_the_class_stays_that_of_the_model() -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertLMHeadModel

    for kind, config in (
        (BertForSequenceClassification, BertConfig(**SIZES, num_labels=5)),
        (BertLMHeadModel, BertConfig(**SIZES, is_decoder=True)),
    ):
        torch.manual_seed(0)
        model = kind(config).eval()
        sliced = compare(model, draw(model, {"ffn", "layers"}), torch.float32)
        assert type(sliced) is kind


def test_a_name_in_the_config_makes_no_other_thing_than_its_model() -> None:
    """A config comes from outside: what it names is not called unless it is its own class."""
    for name in ("pipeline", "GPT2LMHeadModel", "NoSuchModel"):
        config = AutoConfig.for_model("bert", **SIZES, architectures=[name])
        assert type(make_model(config)).__name__ == "BertForMaskedLM"


def test_half_precision_leaves_the_rotary_angles_as_they_are() -> None:
    model = build("llama")
    angles = model.model.rotary_emb.inv_freq.clone()
    groups, kept = draw(model, {"ffn"})
    config = config_of_cut(model, groups, kept)
    sliced = build_sliced(config, slice_weights(model.bfloat16(), groups, kept), False)
    assert sliced.lm_head.weight.dtype is torch.bfloat16
    assert torch.equal(sliced.model.rotary_emb.inv_freq, angles)


def test_what_is_cut_loads_by_itself(tmp_path: Path) -> None:
    """All kinds cut, saved, and loaded by the class that the config names; layer lists too."""
    for family in ("gemma2", "qwen3_moe", "roberta"):
        model = build(family)
        sliced = compare(model, draw(model, PRUNABLE[family]), torch.float32)
        sliced.save_pretrained(tmp_path / family)
        config = AutoConfig.from_pretrained(tmp_path / family)
        loaded = type(make_model(config)).from_pretrained(tmp_path / family)
        loaded.set_experts_implementation("eager")
        assert torch.equal(logits(loaded), logits(sliced))
        assert len(getattr(config, "layer_types", None) or [0, 0]) == config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaling = .*which would become"),
        ("qwen3_moe", {"decoder_sparse_step": 2, "num_hidden_layers": 4}, "ties widths together"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "ties widths together"),
    ],
)
def test_layers_that_know_their_number_stay(
    family: str, overrides: dict[str, Any], reason: str
) -> None:
    model = build(family, **overrides)
    options = PruneOptions(sparsity={"layers": 0.4}, allow_rounding=True).model_dump()
    with pytest.raises(ValueError, match=f"{family} cannot give up layers .*{reason}"):
        choose_shape(model, options, 1)


def test_shared_weights_are_not_cut() -> None:
    model = build("llama")
    model.model.layers[2].mlp.up_proj = model.model.layers[0].mlp.up_proj
    options = PruneOptions(sparsity={"ffn": 0.5}).model_dump()
    shared = r"shares one weight between .*layers\.0\.mlp\.up_proj.*layers\.2\.mlp\.up_proj"
    with pytest.raises(ValueError, match=shared):
        choose_shape(model, options, 1)
    groups, kept = draw(model, {"ffn"})
    with pytest.raises(ValueError, match=shared):
        slice_weights(model, groups, kept)
    compare(model, draw(model, {"kv_groups", "hidden", "layers"}), torch.float32)
