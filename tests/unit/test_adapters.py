"""Top layers, LoRA and QLoRA: what is trained, and that merging gives the same stock model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.distill.adapters import find_linears, keep_top, make_trainable, merge
from tasks.models.checkpoint import load_model
from tasks.models.nf4_linear import NF4Linear, hold_by_bitsandbytes
from tasks.trainable import Adapters, Full, TopLayers

IDS = torch.arange(24).view(2, 12)
SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
NORMS = {
    "llama": "norm",
    "gpt2": "ln_f",
    "opt": "final_layer_norm",
    "gpt_neox": "final_layer_norm",
    "phi": "final_layernorm",
}
"""By family, what is called the final norm."""


def build(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).eval()


def options(kind: str = "lora", **given: Any) -> dict[str, Any]:
    return Adapters(kind=kind, **given).model_dump()


def no_reload() -> Any:
    raise AssertionError("reloaded")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def train(model: Any, num_steps: int = 3) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", NORMS)
def test_an_adapter_starts_at_the_base_and_merges_to_what_it_computes(family: str) -> None:
    model = build(family)
    before, names = logits(model), set(model.state_dict())
    make_trainable(model, options(rank=4), seed=0)
    assert torch.equal(logits(model), before)
    train(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merged = merge(model, no_reload)
    assert set(merged.state_dict()) == names
    torch.testing.assert_close(logits(merged), adapted, atol=1e-5, rtol=1e-5)


def test_an_adapter_has_r_times_in_plus_out_parameters(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    whole = sum(p.numel() for p in model.parameters())
    linears = find_linears(model, None).values()
    expected = sum(3 * (m.in_features + m.out_features) for m in linears)  # type: ignore[operator]
    facts = make_trainable(model, options(rank=3), seed=0)
    assert len(linears) == 2 * 7
    assert facts["trainable_parameters"] == expected
    assert facts["trainable_share"] == round(expected / whole, 6)


def test_adapters_are_the_seeds(tiny_llama: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        model = load_model(tiny_llama)
        make_trainable(model, options(), seed)
        made.append([p for p in model.parameters() if p.requires_grad])
    same = [torch.equal(a, b) for a, b in zip(made[0], made[1], strict=True)]
    other = [torch.equal(a, b) for a, b in zip(made[0], made[2], strict=True)]
    assert all(same) and other.count(True) == len(other) // 2  # every B is zero


def test_only_the_named_layers_are_adapted(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    make_trainable(model, options(target_modules=["q_proj", "v_proj"]), seed=0)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2 and all("q_proj" in n or "v_proj" in n for n in trained)
    with pytest.raises(ValueError, match=r"among .*'q_proj'.* got \['query'\]"):
        make_trainable(load_model(tiny_llama), options(target_modules=["query"]), seed=0)


def test_qlora_computes_with_nf4_and_merges_into_the_full_weights(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    before = logits(model)
    make_trainable(model, options("qlora", rank=4), seed=0)
    held = [m for m in model.modules() if isinstance(m, NF4Linear)]
    assert len(held) == 2 * 7
    assert 0 < float((logits(model) - before).abs().max()) < 1
    train(model)
    deltas = {
        name: layer.get_delta_weight("default")
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    merged = merge(model, lambda: load_model(tiny_llama))
    dense = load_model(tiny_llama)
    for name, weight in dense.named_parameters():
        delta = deltas.get(name.removesuffix(".weight"), torch.zeros(()))
        assert torch.equal(merged.get_parameter(name), weight + delta)
    assert merged.state_dict().keys() == dense.state_dict().keys()


def test_a_held_layer_takes_an_eighth_and_has_the_gradient_of_its_weight() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 192)
    held = NF4Linear(linear)
    num_bytes = sum(part.nbytes for part in held.packed.parts.values())
    assert num_bytes < 4 * linear.weight.numel() / 7
    assert not any(p.requires_grad for p in held.parameters())
    x = torch.randn(5, 256, requires_grad=True)
    upstream = torch.randn(5, 192)
    (expected,) = torch.autograd.grad(F.linear(x, held.dequantize(), linear.bias), x, upstream)
    (got,) = torch.autograd.grad(held(x), x, upstream)
    assert torch.equal(got, expected)
    assert held.bfloat16()(x.bfloat16()).dtype is torch.bfloat16


def test_transposed_layers_are_not_held_in_4_bits() -> None:
    with pytest.raises(ValueError, match=r"transposed .* of gpt2; say trainable: lora"):
        make_trainable(build("gpt2"), options("qlora"), seed=0)


@pytest.mark.parametrize("family", NORMS)
def test_top_layers_are_the_last_blocks_the_norm_and_a_head_of_its_own(family: str) -> None:
    model = build(family)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    keep_top(model, 1)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    blocks = {n for n, _ in model.named_parameters() if ".2." in n}
    rest = {n.rsplit(".", 1)[0].rpartition(".")[2] for n in trained - blocks}
    assert blocks < trained
    assert rest == ({NORMS[family]} if tied else {NORMS[family], "lm_head"})
    with pytest.raises(ValueError, match="at most 3, which the student has, got 4"):
        keep_top(model, 4)


def test_full_training_changes_nothing(make_llama: Callable[..., Path]) -> None:
    model = load_model(make_llama(tie_word_embeddings=False))
    facts = make_trainable(model, Full().model_dump(), seed=0)
    assert facts["trainable_share"] == 1.0
    assert merge(model, no_reload) is model
    facts = make_trainable(model, TopLayers(kind="top_layers", num_layers=1).model_dump(), seed=0)
    assert 0 < float(facts["trainable_share"]) < 1.0
    assert all(p.requires_grad for p in merge(model, no_reload).parameters())


def test_without_bitsandbytes_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes, or say trainable: lora"):
        hold_by_bitsandbytes(nn.Linear(2, 2))
