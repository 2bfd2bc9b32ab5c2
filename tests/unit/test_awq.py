"""AWQ: scales that move between operations without changing what the block computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernels.group_quant import fused
from tasks.models.quantized.plain import PlainTensor
from tasks.quantize.block import Block
from tasks.quantize.calibration import Prefix, enter_model, put_weights, run_block, shared_inputs
from tasks.quantize.decoder_blocks import linear_weights
from tasks.quantize.folding import find_source
from tasks.quantize.methods import absmax, awq
from tests.unit.layer_cases import correlated_case, loss

FAMILIES = {
    "llama": {"num_key_value_heads": 4, "head_dim": 8},
    "qwen2": {"num_key_value_heads": 4},  # its v_proj has a bias
    "gemma": {"num_key_value_heads": 4, "head_dim": 8, "vocab_size": 300},  # norms of 1 + weight
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},  # norms with a bias, and a ReLU
}


def enter(model_type: str, tmp_path: Path, **settings: Any) -> Prefix:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = AutoConfig.for_model(model_type, **(common | settings))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
            elif "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    ids = torch.randint(300, (8, 32), generator=torch.Generator().manual_seed(1))
    return enter_model(Path, str(tmp_path), ids, trust_remote_code=False)


def block_of(prefix: Prefix) -> Block:
    names = linear_weights(prefix.model, prefix.blocks[0])
    weights = {name: prefix.model.get_parameter(name).detach().clone() for name in names}
    return Block(weights, torch.float32, prefix)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_operation_before_is_found_by_trial(model_type: str, tmp_path: Path) -> None:
    prefix = enter(model_type, tmp_path, **FAMILIES[model_type])
    before = {name: p.detach().clone() for name, p in prefix.model.named_parameters()}
    found = {}
    for names in shared_inputs(prefix, list(linear_weights(prefix.model, prefix.blocks[0]))):
        source = find_source(prefix, names)
        assert source is not None
        before_them = (source.module.split(".")[-1], source.offset)
        found |= {name.split(".")[-2]: before_them for name in names}
    if model_type == "opt":
        expected = {
            "q_proj": ("self_attn_layer_norm", 0.0),
            "out_proj": ("v_proj", 0.0),
            "fc1": ("final_layer_norm", 0.0),
            "fc2": ("fc1", 0.0),
        }
    else:
        offset = 1.0 if model_type == "gemma" else 0.0
        expected = {
            "q_proj": ("input_layernorm", offset),
            "o_proj": ("v_proj", 0.0),
            "gate_proj": ("post_attention_layernorm", offset),
            "down_proj": ("up_proj", 0.0),
        }
    assert {name: found[name] for name in expected} == expected
    assert found["q_proj"] == found["k_proj"] == found["v_proj"]
    for name, parameter in prefix.model.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_eight_bits_leave_the_block_as_it_was(
    model_type: str, rounding: Any, tmp_path: Path
) -> None:
    prefix = enter(model_type, tmp_path, **FAMILIES[model_type])
    block = block_of(prefix)
    before = run_block(prefix, prefix.streams[0])
    done = awq.quantize(block, bits=8, group_size=16, rounding=rounding)
    assert all(done[name].facts["unscaled"] == 0 for name in block.weights)
    changed = [name for name in done if name not in block.weights]
    assert changed and all(isinstance(done[name], PlainTensor) for name in changed)
    moved = [
        n
        for n in block.weights
        if not torch.allclose(done[n].dequantize(), block.weights[n], rtol=0.1)
    ]
    assert moved
    put_weights(prefix, done)
    after = run_block(prefix, prefix.streams[0])
    assert (after - before).norm() < 0.02 * (before - prefix.streams[0]).norm()


def test_shared_value_heads_leave_o_proj_unscaled(make_llama: Callable[..., Path]) -> None:
    ids = torch.randint(200, (8, 32), generator=torch.Generator().manual_seed(1))
    prefix = enter_model(Path, str(make_llama()), ids, trust_remote_code=False)
    done = awq.quantize(block_of(prefix), group_size=8)
    unscaled = {n.split(".")[-2] for n, t in done.items() if t.facts.get("unscaled")}
    assert unscaled == {"o_proj"}


def test_weights_that_the_text_does_not_reach_have_no_operation_before(
    make_llama: Callable[..., Path],
) -> None:
    ids = torch.randint(200, (8, 32), generator=torch.Generator().manual_seed(1))
    prefix = enter_model(Path, str(make_llama()), ids, trust_remote_code=False)
    prefix.blocks[0].first, prefix.blocks[0].second = nn.Linear(32, 12), nn.Linear(12, 32)
    assert find_source(prefix, ["model.layers.0.second.weight"]) is None
    done = awq.quantize(block_of(prefix), group_size=4)
    assert done["model.layers.0.second.weight"].facts["unscaled"] == 1


def test_weights_whose_neighbours_are_quantized_elsewhere_are_not_scaled(
    make_llama: Callable[..., Path],
) -> None:
    ids = torch.randint(200, (8, 32), generator=torch.Generator().manual_seed(1))
    prefix = enter_model(Path, str(make_llama()), ids, trust_remote_code=False)
    whole = block_of(prefix)
    names = [n for n in whole.weights if "q_proj" in n or "down_proj" in n]
    block = Block({n: whole.weights[n] for n in names}, torch.float32, prefix)
    done = awq.quantize(block, group_size=8)
    assert set(done) == set(names)  # no norm gain, and no up_proj
    assert all(tensor.facts["unscaled"] == 1 for tensor in done.values())


def test_the_scale_protects_the_columns_with_large_inputs() -> None:
    weight, hessian = correlated_case(num_rows=32)
    loud = torch.ones(40, dtype=torch.float64)
    loud[[4, 20]] = 30.0
    hessian = hessian * loud.outer(loud)
    scale = awq.search_scale([weight[:20], weight[20:]], hessian, 3, 8, symmetric=True)
    quiet = scale[loud == 1].max()
    assert scale[4] > quiet and scale[20] > quiet
    plain = absmax.round_weight(weight, torch.float32, 3, 8).dequantize()
    scaled = absmax.round_weight(weight * scale, torch.float32, 3, 8).dequantize() / scale
    assert loss(weight, scaled, hessian) < 0.7 * loss(weight, plain, hessian)


def test_a_scale_of_channels_that_are_always_0_is_finite() -> None:
    weight, hessian = correlated_case()
    hessian[3], hessian[:, 3] = 0, 0
    assert awq.search_scale([weight], hessian, 4, 8, symmetric=False).isfinite().all()
    nothing = awq.search_scale([weight], torch.zeros_like(hessian), 4, 8, symmetric=True)
    assert torch.equal(nothing, torch.ones(40))


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_lowers_the_error_of_rounding_to_nearest(symmetric: bool) -> None:
    weight, hessian = correlated_case()
    diagonal = hessian.diagonal().diag()
    clipped, plain = (
        awq.round_weight(weight, diagonal, torch.float32, 3, 8, symmetric, clip_search=clip)
        for clip in (True, False)
    )
    assert clipped.facts["output_error"] < plain.facts["output_error"]
    assert torch.equal(plain.codes, fused.quantize(weight, plain.scale, 3, plain.zero))
