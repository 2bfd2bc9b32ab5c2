"""Sublayers cut as a whole: absent by a modelling file, or zero in stock code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.models.checkpoint import describe_model
from tasks.prune.network_importance import score_group
from tasks.prune.pruning import prune
from tasks.prune.shapes.padding import widen, zero_biases, zero_units
from tasks.prune.shapes.per_layer import build_per_layer
from tasks.prune.shapes.shape import choose_shape
from tasks.prune.shapes.stock_class import make_model
from tasks.prune.shapes.stock_config import config_of_cut
from tasks.prune.units.groups import find_units
from tasks.prune.units.layers import silence
from tasks.prune.units.masking import masked
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune.units.units import Kept, Sublayer, Units
from tasks.prune_options import PruneOptions
from tasks.records import ModelRef, TextRef
from tests.unit.stage_space import make_space

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
STAYS = np.array([False, True, True, False, False, False])
"""Attention only in the second layer, feed-forward only in the first."""


def build(family: str) -> Any:
    """Make a random model whose every weight matters, biases included."""
    torch.manual_seed(0)
    model = make_model(AutoConfig.for_model(family, **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def draw(model: Any) -> tuple[list[Units], Kept]:
    """Switch sublayers off, and some units of those that stay."""
    groups = find_units(model, ["kv_groups", "ffn", "sublayers"])
    widths = {"kv_groups": 2, "ffn": 13}
    rng = np.random.default_rng(0)
    kept = [rng.permutation(g.num_units) < widths.get(g.kind, 0) for g in groups]
    return groups, silence([g.kind for g in groups], [*kept[:-1], STAYS])


IDS = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(0))


def masked_logits(model: Any, groups: list[Units], kept: Kept) -> torch.Tensor:
    with torch.no_grad(), masked(model, groups, kept):
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "phi", "gpt_neox"])
def test_absent_equals_masked(family: str, tmp_path: Path) -> None:
    """Also with the entries of a cache, which every layer must go on counting."""
    model = build(family)
    groups, kept = draw(model)
    if family == "gpt_neox":  # its heads cannot be cut
        kept = [m | (g.kind == "kv_groups" and m.any()) for g, m in zip(groups, kept, strict=True)]
    expected = masked_logits(model, groups, kept)
    state = slice_weights(model, groups, kept)
    wide = config_of_cut(model, groups, widen(groups, kept))
    smaller = build_per_layer(model, groups, kept, wide, state, tmp_path)
    once = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}
    assert smaller.num_parameters() == sum(once.values())
    for group, mask in zip(groups, kept, strict=True):
        if isinstance(group, Sublayer) and not mask.any():
            with pytest.raises(AttributeError):
                smaller.get_submodule(group.writer)
    with torch.no_grad():
        found = smaller(IDS).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        past = smaller(IDS[:, :7], use_cache=True).past_key_values
        rest = smaller(IDS[:, 7:], past_key_values=past, use_cache=True).logits
    torch.testing.assert_close(rest, found[:, 7:], rtol=0, atol=1e-5 * float(found.abs().max()))


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_zero_equals_masked(family: str) -> None:
    """In stock code; the biases go, too."""
    model = build(family)
    groups, kept = draw(model)
    if family == "gpt2":
        kept = [m | (g.kind == "kv_groups" and m.any()) for g, m in zip(groups, kept, strict=True)]
    expected = masked_logits(model, groups, kept)
    wide = widen(groups, kept)
    added = [more & ~mask for more, mask in zip(wide, kept, strict=True)]
    changed = zero_biases(model, groups, kept, zero_units(model, groups, added, {}))
    config = config_of_cut(model, groups, wide)
    padded = build_sliced(config, slice_weights(model, groups, wide, changed), False)
    assert type(padded).__module__.startswith("transformers.")
    with torch.no_grad():
        torch.testing.assert_close(padded(IDS).logits, expected)


Run = Callable[..., tuple[ModelRef, Path, dict[str, Any]]]


@pytest.fixture
def run(make_llama: Callable[..., Path], text_file: Path, tmp_path: Path) -> Run:
    """Run the stage on a random Llama of six sublayers."""
    source = make_llama(num_hidden_layers=3)
    attempts = iter(range(9))

    def start(**chosen: Any) -> tuple[ModelRef, Path, dict[str, Any]]:
        place = tmp_path / str(next(attempts))
        space = make_space(place / "store", place / "scratch")
        text = TextRef(uri=str(text_file), digest="", num_bytes=0)
        model = describe_model(source, str(source))
        record = prune(space, list_options(**chosen), model=model, calibration=text)
        evidence = json.loads(space.store.read("stages/prune/key/evidence.json"))
        return record, space.out, evidence

    return start


def list_options(**chosen: Any) -> dict[str, Any]:
    settings = {
        "sparsity": {"sublayers": 0.34},
        "num_submodels": 8,
        "submodels_per_unit": 4,
        "windows_per_submodel": 2,
    }
    return PruneOptions(**settings | chosen).model_dump() | {
        "seed": 0,
        "alignment": 8,
        "num_windows": 12,
        "window": 32,
        "trust_remote_code": chosen["shape"] == "per_layer",
    }


def test_per_layer_really_lacks_them(run: Run) -> None:
    record, out, evidence = run(shape="per_layer")
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    kept = evidence["kept"]
    assert kept["sublayers"] == [4]
    widths = list(zip(kept["kv_groups"], kept["ffn"], strict=True))
    assert sum(n == 0 for pair in widths for n in pair) == 2
    for layer, (heads, ffn) in zip(model.model.layers, widths, strict=True):
        assert hasattr(layer.self_attn, "q_proj") == bool(heads)
        assert hasattr(layer.mlp, "up_proj") == bool(ffn)
    assert record.num_parameters == model.num_parameters()
    assert record.facts["absent"]
    assert record.facts["loads_with"] == "trust_remote_code"
    whole, left = (
        sum(n * per for n, per in zip(row, (32 * 24 * 2, 96), strict=True))
        for row in ([6, 192], [sum(kept["kv_groups"]), sum(kept["ffn"])])
    )
    assert record.facts["sparsity_got_all"] == pytest.approx(1 - left / whole, abs=1e-6)
    ids = IDS % 50
    assert model.generate(ids, max_new_tokens=5, do_sample=False).shape == (2, 16)
    uncached = model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), uncached)


def test_padded_saves_nothing_and_says_so(run: Run) -> None:
    record, out, evidence = run(shape="padded", method="criterion")
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(model).__module__.startswith("transformers.")
    facts = record.facts
    assert facts["sparsity_saved_all"] == 0
    zeros = sum(int((w == 0).sum()) for name, w in model.state_dict().items() if "proj" in name)
    assert facts["zero_parameters"] == zeros > 0
    assert facts["sparsity_got_all"] > 0.2
    assert len(evidence["kept_units"]["sublayers"][0]) == 4


def test_the_others_are_repaired(run: Run) -> None:
    nats = {}
    for repair in (True, False):
        _, _, evidence = run(shape="per_layer", method="criterion", repair=repair)
        nats[repair] = evidence["candidates"]["criterion"]["nats_per_token"]
    assert nats[True] < nats[False]


def test_a_sublayer_counts_by_how_far_it_turns_the_stream() -> None:
    """Planted: one that adds nothing, and one that outshouts all others."""
    model = build("llama")
    (group,) = find_units(model, ["sublayers"])
    with torch.no_grad():
        model.get_submodule(group.paths[3]).weight.zero_()
        model.get_submodule(group.paths[4]).weight.mul_(100)
    scores = score_group(model, group, IDS)
    assert scores[3] == pytest.approx(0, abs=1e-12)
    assert scores.argmax() == 4
    with pytest.raises(ValueError, match="as in gemma2; choose the criterion ablation"):
        gemma = build("gemma2")
        score_group(gemma, find_units(gemma, ["sublayers"])[0], IDS)


@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        ({"sublayers": 0.3}, "a stock layer has both; say shape: per_layer"),
        ({"sublayers": 0.3, "ffn": 0.2}, "sublayers are cut alone"),
    ],
)
def test_recipes_that_stock_code_cannot_hold_are_refused(
    sparsity: dict[str, float], said: str
) -> None:
    shape = "uniform" if len(sparsity) == 1 else "per_layer"
    with pytest.raises(ValidationError, match=said):
        PruneOptions(sparsity=sparsity, shape=shape)


@pytest.mark.parametrize(
    ("family", "shape", "said"),
    [
        ("phi", "padded", "cannot give up sublayers .*have a bias.*say repair: false"),
        ("opt", "per_layer", "no module of its own holds what leads to .*fc2"),
        ("mixtral", "padded", "experts stand in the place of feed-forward"),
    ],
)
def test_models_that_cannot_do_without_are_refused(family: str, shape: str, said: str) -> None:
    more = {"num_local_experts": 4, "moe_intermediate_size": 12} if family == "mixtral" else {}
    more |= {"ffn_dim": 20, "word_embed_proj_dim": 32} if family == "opt" else {}
    model = make_model(AutoConfig.for_model(family, **SIZES | more))
    with pytest.raises(ValueError, match=said):
        choose_shape(model, list_options(shape=shape), 1)
