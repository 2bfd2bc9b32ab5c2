"""A streamed model computes as a loaded one does, and keeps what is written into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.models.blocks import list_blocks
from tasks.models.checkpoint import load_model
from tasks.models.streaming import is_streamed, open_streamed, read_weight, resident, stored_dtype

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED | {"tie_word_embeddings": True},
    "qwen2": GROUPED,
    "gemma2": GROUPED,
    "phi": GROUPED,
    "gpt2": SIZES,
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": SIZES,
    "qwen3_moe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "mixtral": GROUPED | {"num_local_experts": 4},
}
IDS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random model of a family in a dtype."""

    def make(family: str, dtype: torch.dtype) -> Path:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(family)
        model.to(dtype).save_pretrained(folder)
        return folder

    return make


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def large(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if is_streamed(parameter)]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_model_computes_what_a_loaded_one_does(
    save: Callable[..., Path], family: str, stored: torch.dtype
) -> None:
    folder = save(family, stored)
    loaded, streamed = load_model(folder), open_streamed(folder)
    assert torch.equal(logits(streamed), logits(loaded))
    assert streamed.dtype == torch.float32
    assert streamed.config.to_dict() == loaded.config.to_dict()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(read_weight(streamed.get_parameter(name)), parameter.data)


def test_only_the_block_that_runs_is_held(save: Callable[..., Path]) -> None:
    """The others lie in bf16, in the pages of the mapped file."""
    model = open_streamed(save("llama", torch.bfloat16))
    blocks = list_blocks(model)
    held: list[list[int]] = []

    def look(_: Any, __: Any) -> None:
        dtypes = [{p.dtype for p in large(block)} for block in blocks]
        assert all(len(dtype) == 1 for dtype in dtypes)
        held.append([i for i, (dtype,) in enumerate(map(tuple, dtypes)) if dtype == torch.float32])

    for block in blocks:
        block.mlp.down_proj.register_forward_pre_hook(look)
    logits(model)
    assert held == [[0], [1], [2]]
    assert len(large(model)) == 3 * 7
    assert {p.dtype for p in large(model)} == {torch.bfloat16}


def test_a_pass_that_ends_early_lets_the_block_go(save: Callable[..., Path]) -> None:
    model = open_streamed(save("llama", torch.bfloat16))

    class Stop(Exception):
        pass

    def stop(_: Any, __: Any) -> None:
        raise Stop

    hook = list_blocks(model)[1].register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        logits(model)
    hook.remove()
    assert {p.dtype for p in large(model)} == {torch.bfloat16}
    assert not any(p.source.uses for p in large(model))  # type: ignore[attr-defined]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_what_is_written_while_resident_is_kept_and_the_files_stay(
    save: Callable[..., Path], stored: torch.dtype
) -> None:
    folder = save("llama", stored)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    loaded, streamed = load_model(folder), open_streamed(folder)
    for model in (loaded, streamed):
        with torch.no_grad(), resident(model.model.layers[1]):
            model.model.layers[1].mlp.up_proj.weight.mul_(1.0001)
            model.model.layers[1].self_attn.q_proj.weight.data = torch.full((32, 32), 0.1)
    assert torch.equal(logits(streamed), logits(loaded))
    assert not torch.equal(logits(streamed), logits(open_streamed(folder)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    if stored == torch.bfloat16:
        written = {p.shape for p in large(streamed) if p.dtype == torch.float32}
        assert written == {(48, 32), (32, 32)}


def test_reading_takes_no_memory_for_good(save: Callable[..., Path]) -> None:
    model = open_streamed(save("llama", torch.bfloat16))
    with resident(model):
        assert {p.dtype for p in large(model)} == {torch.float32}
        logits(model)
        assert {p.dtype for p in large(model)} == {torch.float32}
    assert {p.dtype for p in large(model)} == {torch.bfloat16}


def test_files_that_hold_several_dtypes_are_read_in_the_one_to_compute_in(
    save: Callable[..., Path],
) -> None:
    from safetensors.torch import load_file, save_file

    folder = save("llama", torch.float32)
    (shard,) = folder.glob("*.safetensors")
    tensors = load_file(shard)
    tensors = {n: t if "norm" in n else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(tensors, shard, {"format": "pt"})
    assert stored_dtype(folder) is None
    assert torch.equal(logits(open_streamed(folder)), logits(load_model(folder)))
