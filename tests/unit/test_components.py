"""Components: nothing is lost, and FLOPs are those of the matrices, checked by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.models.checkpoint import count_parameters
from tasks.models.components import count_components, name_component


def counted(folder: Path, window: int = 32) -> dict[str, tuple[int, int]]:
    found = count_components(folder, window)
    assert found is not None
    assert sum(part.num_parameters for part in found) == count_parameters(folder)
    return {part.name: (part.num_parameters, part.flops_per_token) for part in found}


def test_a_llama_by_hand(make_llama: Callable[..., Path]) -> None:
    """2 layers, hidden 32, 4 heads and 2 KV groups of 8, FFN 64, window 32, tied."""
    found = counted(make_llama())
    vocabulary = found["embeddings"][0] // 32
    projections = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32)
    assert found == {
        "embeddings": (vocabulary * 32, 0),
        "attention": (projections, 2 * projections + 2 * 2 * 32 * 32),
        "feed-forward": (2 * 3 * 32 * 64, 2 * 2 * 3 * 32 * 64),
        "norms": (5 * 32, 0),
        "head": (0, 2 * vocabulary * 32),
    }


def test_an_untied_head_has_parameters(make_llama: Callable[..., Path]) -> None:
    found = counted(make_llama(tie_word_embeddings=False))
    assert found["head"] == (found["embeddings"][0], 2 * found["embeddings"][0])


def test_attention_over_twice_the_window_costs_twice(make_llama: Callable[..., Path]) -> None:
    folder = make_llama()
    once, twice, thrice = (counted(folder, w)["attention"][1] for w in (32, 64, 96))
    assert twice - once == thrice - twice == 2 * 2 * 32 * 32


def test_experts_cost_what_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["MixtralForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1, '
        '"vocab_size": 10, "num_local_experts": 4, "num_experts_per_tok": 2, '
        '"intermediate_size": 16}'
    )
    experts = {f"layers.0.mlp.experts.{e}.w1.weight": torch.zeros(16, 8) for e in range(4)}
    router = {"layers.0.mlp.gate.weight": torch.zeros(4, 8)}
    save_file(experts | router, tmp_path / "model.safetensors")
    assert counted(tmp_path)["experts"] == (4 * 128 + 32, 2 * (2 * 128 + 32))


@pytest.mark.parametrize(
    ("tensor", "component"),
    [
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("transformer.h.3.ln_1.bias", "norms"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", "norms"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "attention"),
        ("bert.encoder.layer.0.output.dense.weight", "feed-forward"),
        ("bert.embeddings.word_embeddings.weight", "embeddings"),
        ("bert.pooler.dense.weight", "head"),
        ("cls.predictions.transform.dense.weight", "head"),
        ("distilbert.transformer.layer.0.ffn.lin1.weight", "feed-forward"),
        ("transformer.wte.weight", "embeddings"),
        ("transformer.h.0.attn.c_proj.weight", "attention"),
        ("transformer.h.0.mlp.c_proj.weight", "feed-forward"),
        ("gpt_neox.embed_in.weight", "embeddings"),
        ("embed_out.weight", "head"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", "attention"),
        ("model.decoder.layers.0.fc1.weight", "feed-forward"),
        ("model.layers.0.mlp.gate_proj.weight", "feed-forward"),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", "feed-forward"),
        ("model.layers.0.mlp.router.weight", "experts"),
        ("backbone.layers.0.mixer.conv1d.weight", "other"),
    ],
)
def test_names_of_many_families(tensor: str, component: str) -> None:
    assert name_component(tensor) == component


def test_packed_codes_tell_no_components(make_llama: Callable[..., Path]) -> None:
    folder = make_llama()
    (folder / "model.gguf").write_bytes(b"")
    assert count_components(folder, 32) is None
