"""Export formats: what is written, what plain transformers makes of it, what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.models.checkpoint import count_parameters, load_model
from tasks.models.folder import load_config
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized_tensor import QuantizedTensor
from tasks.quantize.checkpoint_tensors import cast, stored_names
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.formats import compressed_tensors, safetensors
from tasks.quantize.methods import absmax, fp8

COMPARE = """
import sys, torch
from transformers import AutoModelForCausalLM
ids = torch.arange(40).reshape(2, 20)
for left, right in zip(sys.argv[1::2], sys.argv[2::2]):
    logits = [AutoModelForCausalLM.from_pretrained(f)(input_ids=ids).logits for f in (left, right)]
    assert torch.isfinite(logits[0]).all() and logits[0].std() > 0
    assert torch.equal(*logits), (left, (logits[0] - logits[1]).abs().max())
"""


def quantize_all(
    source: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[dict[str, IntegerTensor], list[str]]:
    """Round the blocks' weights to nearest; return them and the other linear modules."""
    layout = find_layout(source, trust_remote_code=False)
    weights = {
        name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()
    }
    names = [name for block in layout.blocks for name in block]
    return {n: absmax.round_weight(weights[n], dtype, **options) for n in names}, layout.others


def write_both(source: Path, folder: Path, dtype: torch.dtype, **options: Any) -> tuple[Path, Path]:
    """Write one quantization packed, and multiplied out as a plain checkpoint."""
    quantized, others = quantize_all(source, dtype, **options)
    return write_quantized(source, folder, dtype, quantized, others)


def write_quantized(
    source: Path,
    folder: Path,
    dtype: torch.dtype,
    quantized: Mapping[str, QuantizedTensor],
    others: list[str],
) -> tuple[Path, Path]:
    packed, plain = folder / "packed", folder / "plain"
    for out, write in ((packed, compressed_tensors.write), (plain, safetensors.write)):
        out.mkdir(parents=True)
        write(source, out, quantized, others, dtype)
    return packed, plain


def write_mixed(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write a model whose weights are stored in four ways, two of them in two widths."""
    eight, others = quantize_all(source, bits=8, group_size=16)
    four, _ = quantize_all(source, bits=4, group_size=8)
    mixed: dict[str, QuantizedTensor] = dict(four)
    for name in four:
        if "k_proj" in name:
            mixed[name] = eight[name]
        elif "o_proj" in name:
            mixed[name] = fp8.quantize_weight(eight[name].dequantize(), torch.float32)
        elif "v_proj" in name:
            del mixed[name]
    kept = [name.removesuffix(".weight") for name in four if name not in mixed]
    return write_quantized(source, folder, torch.float32, mixed, [*others, *kept])


def save_random(folder: Path, model_type: str, **settings: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases too
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_packed_exports_compute_what_the_codes_stand_for(tiny_llama: Path, tmp_path: Path) -> None:
    """In a fresh process: one load of transformers for all of them."""
    untied = save_random(tmp_path / "mistral", "mistral", tie_word_embeddings=False, head_dim=16)
    biased = save_random(tmp_path / "qwen2", "qwen2", tie_word_embeddings=True)
    cases: list[tuple[Path, torch.dtype, dict[str, Any]]] = [
        (tiny_llama, torch.float32, {"bits": 4, "group_size": 16}),
        (tiny_llama, torch.bfloat16, {"bits": 4, "group_size": 32}),
        (tiny_llama, torch.float16, {"bits": 8}),
        (tiny_llama, torch.float32, {"bits": 3, "group_size": 8}),
        (untied, torch.float32, {"bits": 8, "group_size": 16}),
        (untied, torch.bfloat16, {"bits": 4}),
        (biased, torch.float32, {"bits": 4, "group_size": 8}),
        (tiny_llama, torch.float32, {"bits": 4, "group_size": 16, "symmetric": False}),
        (untied, torch.bfloat16, {"bits": 8, "symmetric": False}),
        (biased, torch.float32, {"bits": 3, "symmetric": False}),
    ]
    folders = [
        folder
        for index, (source, dtype, options) in enumerate(cases)
        for folder in write_both(source, tmp_path / str(index), dtype, **options)
    ]
    folders += write_mixed(tiny_llama, tmp_path / "mixed")
    subprocess.run([sys.executable, "-c", COMPARE, *folders], check=True, cwd=tmp_path)


def test_what_a_packed_export_holds(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    source = make_llama(tie_word_embeddings=False)
    packed, _ = write_both(source, tmp_path, torch.bfloat16, bits=4, group_size=16)
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert name not in tensors
    assert tensors[f"{name}_packed"].shape == (32, 64 * 4 // 32)
    assert tensors[f"{name}_packed"].dtype == torch.int32
    assert tensors[f"{name}_scale"].shape == (32, 64 // 16)
    assert tensors[f"{name}_shape"].tolist() == [32, 64]
    floats = {n: t.dtype for n, t in tensors.items() if t.is_floating_point()}
    assert set(floats.values()) == {torch.bfloat16}
    assert "lm_head.weight" in floats

    config = load_config(packed)
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    scheme = config["quantization_config"]
    assert (scheme["quant_method"], scheme["format"]) == ("compressed-tensors", "pack-quantized")
    assert scheme["ignore"] == ["lm_head"]
    weights = scheme["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["strategy"], weights["group_size"]) == (4, "group", 16)
    assert weights["symmetric"] is True


def test_a_step_per_row_is_strategy_channel(tiny_llama: Path, tmp_path: Path) -> None:
    packed, _ = write_both(tiny_llama, tmp_path, torch.float32, bits=8)
    group = load_config(packed)["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel"
    assert load_file(packed / "model.safetensors")[
        "model.layers.0.self_attn.q_proj.weight_scale"
    ].shape == (32, 1)


def test_linears_left_as_they_are_are_ignored(tiny_llama: Path, tmp_path: Path) -> None:
    quantized, others = quantize_all(tiny_llama, bits=4, group_size=16)
    kept = "model.layers.0.mlp.down_proj"
    del quantized[f"{kept}.weight"]
    compressed_tensors.write(tiny_llama, tmp_path, quantized, [*others, kept], torch.float32)
    assert load_config(tmp_path)["quantization_config"]["ignore"] == ["lm_head", kept]
    assert f"{kept}.weight" in load_file(tmp_path / "model.safetensors")


def test_equal_input_gives_equal_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    first = write_both(tiny_llama, tmp_path / "a", torch.bfloat16, bits=4, group_size=16)
    second = write_both(tiny_llama, tmp_path / "b", torch.bfloat16, bits=4, group_size=16)
    for left, right in zip(first, second, strict=True):
        assert sorted(p.name for p in left.iterdir()) == ["config.json", "model.safetensors"]
        for path in left.iterdir():
            assert path.read_bytes() == (right / path.name).read_bytes()


def test_shards_are_joined_and_a_tied_head_is_stored_once(tiny_llama: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_llama / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, tmp_path / f"model-{number}.safetensors")
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    assert list(stored_names(tmp_path)) == sorted(set(names) - {"lm_head.weight"})
    out = tmp_path / "out"
    out.mkdir()
    safetensors.write(tmp_path, out, {}, [], torch.float32)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")


def test_a_plain_export_keeps_every_value(tiny_llama: Path, tmp_path: Path) -> None:
    facts = safetensors.write(tiny_llama, tmp_path, {}, [], torch.float32)
    assert facts == {"num_flushed": 0, "effective_bits": 32}
    before = load_file(tiny_llama / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "torch_dtype" not in json.loads((tmp_path / "config.json").read_text())


def test_casts() -> None:
    half, flushed = cast("w", torch.tensor([65504.0, 1e-8, 0.0]), torch.float16)
    assert half.tolist() == [65504.0, 0.0, 0.0]
    assert flushed == 1
    with pytest.raises(ValueError, match=r"w holds 65520, .* 65504; use bfloat16 or float32"):
        cast("w", torch.tensor([65520.0]), torch.float16)
    brain, flushed = cast("w", torch.tensor([1e-8, 257.0]), torch.bfloat16)
    assert flushed == 0
    assert brain[0] > 0
    assert brain[1] == 256
    assert cast("index", torch.tensor([70000]), torch.float16)[0].tolist() == [70000]


def test_nothing_quantized_is_nothing_to_pack(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use format safetensors"):
        compressed_tensors.write(tiny_llama, tmp_path, {}, ["lm_head"], torch.float32)


def test_several_ways_to_store_are_named_by_group(tiny_llama: Path, tmp_path: Path) -> None:
    packed, _ = write_mixed(tiny_llama, tmp_path)
    scheme = load_config(packed)["quantization_config"]
    groups = scheme["config_groups"].values()
    assert scheme["format"] == "mixed-precision"
    assert "dequantize" not in scheme
    found = {
        (g["format"], g["weights"]["type"], g["weights"]["num_bits"], g["weights"]["strategy"])
        for g in groups
    }
    assert found == {
        ("pack-quantized", "int", 4, "group"),
        ("pack-quantized", "int", 8, "group"),
        ("float-quantized", "float", 8, "channel"),
    }
    assert all(g["input_activations"] is None for g in groups)
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    assert tensors[name].dtype == torch.float8_e4m3fn
    assert tensors[f"{name}_scale"].shape == (32, 1)
    assert "model.layers.0.self_attn.v_proj" in scheme["ignore"]


def test_zero_points_are_packed_down_the_rows(tiny_llama: Path, tmp_path: Path) -> None:
    """As compressed-tensors packs them."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    quantized, _ = quantize_all(tiny_llama, bits=4, group_size=16, symmetric=False)
    packed, _ = write_both(
        tiny_llama, tmp_path, torch.float32, bits=4, group_size=16, symmetric=False
    )
    name = "model.layers.0.mlp.down_proj.weight"
    stored = load_file(packed / "model.safetensors")[f"{name}_zero_point"]
    assert stored.shape == (32 * 4 // 32, 64 // 16)
    zero = quantized[name].zero
    assert zero is not None
    assert torch.equal(unpack_from_int32(stored, 4, zero.shape, packed_dim=0), zero)
    scheme = load_config(packed)["quantization_config"]
    assert scheme["config_groups"]["group_0"]["weights"]["symmetric"] is False
    assert scheme["dequantize"] is True


def test_zero_points_in_several_widths_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    quantized, others = quantize_all(tiny_llama, bits=4, group_size=16, symmetric=False)
    name = "model.layers.0.mlp.down_proj.weight"
    eight, _ = quantize_all(tiny_llama, bits=8, group_size=16)
    with pytest.raises(ValueError, match="zero points where all weights have the same bits"):
        write_quantized(
            tiny_llama, tmp_path, torch.float32, quantized | {name: eight[name]}, others
        )


def test_int8_inputs_are_rounded_token_by_token(tiny_llama: Path, tmp_path: Path) -> None:
    """transformers computes with both sides in int8: 255 steps from -max to max."""
    quantized, others = quantize_all(tiny_llama, bits=8)
    both = {name: replace(tensor, activations="int8") for name, tensor in quantized.items()}
    packed, plain = write_quantized(tiny_llama, tmp_path, torch.float32, both, others)
    scheme = load_config(packed)["quantization_config"]
    assert scheme["format"] == "int-quantized"
    inputs = scheme["config_groups"]["group_0"]["input_activations"]
    assert (inputs["strategy"], inputs["dynamic"], inputs["num_bits"]) == ("token", True, 8)
    name = "model.layers.0.mlp.up_proj"
    stored = load_file(packed / "model.safetensors")
    assert torch.equal(stored[f"{name}.weight"], quantized[f"{name}.weight"].codes)

    def round_input(module: torch.nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
        step = args[0].abs().amax(dim=-1, keepdim=True) / 127.5
        return torch.round(args[0] / step).clamp(-128, 127) * step

    expected = load_model(plain)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        unrounded = expected(input_ids=ids).logits
        for weight in both:
            module = expected.get_submodule(weight.removesuffix(".weight"))
            module.register_forward_pre_hook(round_input)
        logits = load_model(packed)(input_ids=ids).logits
        torch.testing.assert_close(logits, expected(input_ids=ids).logits, rtol=0, atol=1e-4)
    assert (logits - unrounded).abs().max() > 1e-3


def test_three_bits_say_their_container(tiny_llama: Path, tmp_path: Path) -> None:
    quantized, others = quantize_all(tiny_llama, bits=3, group_size=16)
    facts = compressed_tensors.write(tiny_llama, tmp_path, quantized, others, torch.float32)
    assert str(facts["container"]).startswith("int3: 32 codes in 3 words of 32 bits")
    quantized, others = quantize_all(tiny_llama, bits=4, group_size=16)
    facts = compressed_tensors.write(tiny_llama, tmp_path, quantized, others, torch.float32)
    assert "container" not in facts


@pytest.mark.parametrize(
    ("options", "bits_per_weight"),
    [
        ({"bits": 4, "group_size": 64}, 4.25),
        ({"bits": 3, "group_size": 64}, 3.25),
        ({"bits": 4, "group_size": 64, "symmetric": False}, 4.25 + 4 / 64),
        ({"bits": 8}, 8),
    ],
)
def test_bytes_on_disk_are_the_formats_arithmetic(
    options: dict[str, Any],
    bits_per_weight: float,
    make_llama: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source = make_llama(hidden_size=512, intermediate_size=1536, head_dim=128)
    quantized, others = quantize_all(source, torch.bfloat16, **options)
    facts = compressed_tensors.write(source, tmp_path, quantized, others, torch.bfloat16)
    num_quantized = sum(tensor.shape.numel() for tensor in quantized.values())
    rest = 2 * (count_parameters(source) - num_quantized)
    expected = num_quantized * bits_per_weight / 8 + rest
    assert (tmp_path / "model.safetensors").stat().st_size == pytest.approx(expected, rel=0.03)
    assert facts["effective_bits"] == pytest.approx(bits_per_weight, rel=0.01)
