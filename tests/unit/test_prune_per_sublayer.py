"""Widths by sublayer: the best ones out of the same total, filled up with zeros for stock code."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from tasks.errors import CheckpointError
from tasks.models.checkpoint import describe_model
from tasks.models.folder import copy_companions
from tasks.prune.pruning import prune
from tasks.prune.shapes.allocation import Options, solve_widths
from tasks.prune.shapes.padding import widen, zero_units
from tasks.prune.shapes.stock_config import config_of_cut
from tasks.prune.units.groups import find_units
from tasks.prune.units.masking import masked
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune_options import PruneOptions
from tasks.publish.load_check import Probe, check_loads
from tasks.quantize.formats.safetensors import write
from tasks.recipe_file import load_recipe
from tasks.records import ModelRef, TextRef
from tests.unit.stage_space import make_space

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_widths_of_the_same_total_are_better(data: st.DataObject) -> None:
    """Against all widths one by one."""
    sublayers = []
    for group in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["kv_groups", "ffn"]))
        choices = sorted(data.draw(st.sets(st.integers(1, 12), min_size=1, max_size=5)))
        uniform = data.draw(st.sampled_from(choices))
        sublayers.append(Options(group, kind, choices, {"kv_groups": 50, "ffn": 7}[kind], uniform))
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    rises = [np.sort(rng.uniform(-1, 3, len(s.choices)))[::-1].copy() for s in sublayers]
    totals = data.draw(st.sampled_from([[["kv_groups", "ffn"]], [["kv_groups"], ["ffn"]]]))

    def size(widths: tuple[int, ...], kinds: list[str]) -> int:
        return sum(
            w * s.per_unit for w, s in zip(widths, sublayers, strict=True) if s.kind in kinds
        )

    def rise(widths: tuple[int, ...]) -> float:
        pairs = zip(sublayers, rises, widths, strict=True)
        return float(sum(r[s.choices.index(w)] for s, r, w in pairs))

    uniform_widths = tuple(s.uniform for s in sublayers)
    fitting = [
        widths
        for widths in product(*(s.choices for s in sublayers))
        if all(size(widths, kinds) <= size(uniform_widths, kinds) for kinds in totals)
    ]
    found = tuple(solve_widths(sublayers, rises, totals, reach=99))
    assert found in fitting
    assert rise(found) == pytest.approx(min(map(rise, fitting)))
    near = solve_widths(sublayers, rises, totals, reach=0.2)
    for sublayer, width in zip(sublayers, near, strict=True):
        between = range(min(width, sublayer.uniform) + 1, max(width, sublayer.uniform))
        next_to_it = not set(between) & set(sublayer.choices)
        assert next_to_it or abs(width - sublayer.uniform) <= 0.2 * sublayer.uniform


def test_zeros_change_nothing(make_llama: Callable[..., Path]) -> None:
    """Masked equals sliced and filled up, whatever else the weights were."""
    model = AutoModelForCausalLM.from_pretrained(
        make_llama(num_hidden_layers=3, num_key_value_heads=4, attention_bias=True, mlp_bias=False),
        dtype=torch.float64,
    ).eval()
    groups = find_units(model, ["kv_groups", "ffn"])
    rng = np.random.default_rng(0)
    num_kept = [2, 40, 2, 8, 1, 16]
    kept = [rng.permutation(g.num_units) < n for g, n in zip(groups, num_kept, strict=True)]
    wide = widen(groups, kept)
    assert [int(m.sum()) for m in wide] == [2, 40] * 3
    added = [w & ~k for w, k in zip(wide, kept, strict=True)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = slice_weights(model, groups, wide, zero_units(model, groups, added, {}))
    small = build_sliced(config_of_cut(model, groups, wide), state, trust_remote_code=False)
    ids = torch.arange(20)[None]
    with torch.no_grad(), masked(model, groups, kept):
        expected = model(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, expected, rtol=0, atol=1e-9)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


Run = Callable[..., tuple[ModelRef, Path, dict[str, Any]]]


@pytest.fixture
def run(make_llama: Callable[..., Path], text_file: Path, tmp_path: Path) -> Run:
    """Run the stage on a random Llama whose first layer matters most."""
    source = make_llama(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4)
    attempts = iter(range(9))

    def start(alignment: int = 8, **chosen: Any) -> tuple[ModelRef, Path, dict[str, Any]]:
        place = tmp_path / str(next(attempts))
        space = make_space(place / "store", place / "scratch")
        settings = {"method": "criterion", "windows_per_submodel": 2} | chosen
        given = PruneOptions(**settings).model_dump() | {
            "seed": 0,
            "alignment": alignment,
            "num_windows": 12,
            "window": 32,
            "trust_remote_code": chosen.get("shape") == "per_layer",
        }
        text = TextRef(uri=str(text_file), digest="", num_bytes=0)
        record = prune(space, given, model=describe_model(source, str(source)), calibration=text)
        evidence = json.loads(space.store.read("stages/prune/key/evidence.json"))
        return record, space.out, evidence

    return start


def test_padded_loads_in_stock_code_and_says_what_it_saves(run: Run) -> None:
    record, out, evidence = run(
        shape="padded", sparsity=0.5, num_submodels=4, method="perturbation"
    )
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(model).__module__.startswith("transformers.")
    facts, kept = record.facts, evidence["kept"]
    assert facts["widths_ffn"] == " ".join(map(str, kept["ffn"]))
    assert facts["widest_ffn"] == max(kept["ffn"]) == model.config.intermediate_size
    assert all(width % 8 == 0 for width in kept["ffn"])
    assert facts["sparsity_saved_all"] <= 0.5 <= facts["sparsity_got_all"] + 1e-6
    zeros = sum(
        int((weight == 0).sum()) for name, weight in model.state_dict().items() if "proj" in name
    )
    assert facts["zero_parameters"] == zeros
    nats = {name: cut["nats_per_token"] for name, cut in evidence["candidates"].items()}
    assert "uniform" in nats
    assert nats[evidence["chosen"]] == min(nats.values())
    proposed = [p["num_kept"] for p in evidence["allocation"]["proposed"]]
    if evidence["chosen"] != "uniform":
        assert zeros > 0
        assert [n for layer in zip(kept["kv_groups"], kept["ffn"], strict=True) for n in layer] in (
            proposed
        )


def test_layers_are_cut_before(run: Run) -> None:
    with pytest.raises(ValidationError, match=r"cut layers in a prune step before this one"):
        run(shape="padded", sparsity={"ffn": 0.5, "layers": 0.3})


def test_code_of_its_own_must_be_allowed(recipe_file: Path) -> None:
    wanted = "steps.0.prune.shape=per_layer"
    with pytest.raises(ValueError, match=r"teacher\.trust_remote_code: false; set it to true"):
        load_recipe(recipe_file, [wanted])
    allowed = load_recipe(recipe_file, [wanted, "teacher.trust_remote_code=true"])
    assert allowed.steps[0].prune is not None and allowed.steps[0].prune.shape == "per_layer"


def test_per_layer_saves_all_of_it_and_needs_its_code(run: Run, tmp_path: Path) -> None:
    """It loads by its modelling file, in a fresh process, after quantization too; else not."""
    record, out, evidence = run(shape="per_layer", sparsity=0.5)
    assert evidence["chosen"] != "uniform", "choose another random model"
    assert (out / "modeling_per_layer.py").is_file()
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    assert type(model).__name__ in ("PerLayerLlamaForCausalLM", "PerLayerMistralForCausalLM")
    widths = [layer.mlp.down_proj.in_features for layer in model.model.layers]
    assert widths == evidence["kept"]["ffn"]
    assert record.num_parameters == model.num_parameters()
    assert record.facts["loads_with"] == "trust_remote_code"
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    nats = float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 23)
    probe = Probe(ids=ids.tolist(), nats_per_token=nats)
    assert check_loads(out, record, probe, trust_remote_code=True).nats_per_token == pytest.approx(
        nats, rel=1e-4
    )
    with pytest.raises(CheckpointError):
        check_loads(out, record, probe)

    quantized = tmp_path / "quantized"
    quantized.mkdir()
    write(out, quantized, {}, [], torch.float32)
    copy_companions(out, quantized)
    again = AutoModelForCausalLM.from_pretrained(quantized, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
