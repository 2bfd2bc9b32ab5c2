"""The GGUF export: codes survive bit for bit, families load, what cannot be said is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tasks.errors import CheckpointError
from tasks.models.checkpoint import count_parameters, describe_model, load_model
from tasks.models.folder import GGUF_FILE, copy_companions, load_config
from tasks.models.quantized.integer import IntegerTensor
from tasks.publish.load_check import Probe, check_loads
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.formats.gguf import write
from tasks.quantize.gguf_metadata import rope_divisors
from tasks.quantize.gguf_tokenizer import name_split
from tasks.quantize.methods import absmax
from tasks.quantize.pairing import check_source

HALF = torch.float16
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def make_model(tiny_llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """Save a random model of a family, with a tokenizer; every parameter is random."""

    def make(model_type: str, **overrides: Any) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        settings = {
            "vocab_size": 304,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 128,
        }
        config = AutoConfig.for_model(model_type, **(settings | overrides))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        folder = tmp_path / f"{model_type}-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        copy_companions(tiny_llama, folder)
        return folder

    return make


def export(source: Path, out: Path, dtype: torch.dtype = HALF, **options: Any) -> dict[str, Any]:
    """Write a model with its blocks rounded to nearest; return the quantized weights.

    Options are absmax's; without any, nothing is quantized.
    """
    layout = find_layout(source, trust_remote_code=False)
    stored = load_file(source / "model.safetensors")
    quantized = {
        name: absmax.round_weight(stored[name].float(), HALF, group_size=32, **options)
        for block in layout.blocks
        for name in block
        if options
    }
    out.mkdir()
    write(source, out, quantized, layout.others, dtype)
    copy_companions(source, out)
    return quantized


def compare(source: Path, out: Path, quantized: dict[str, IntegerTensor], dtype: str) -> float:
    """Return the largest difference from the model in memory, relative to the largest logit."""
    expected, got = load_model(source, dtype), load_model(out, dtype)
    assert type(got) is type(expected)
    assert got.config.model_type == expected.config.model_type
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        for name, tensor in quantized.items():
            expected.get_parameter(name).copy_(tensor.dequantize())
        logits, reference = got(input_ids=ids).logits, expected(input_ids=ids).logits
    return float((logits - reference).abs().max() / reference.abs().max())


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("mistral", {"num_attention_heads": 3, "num_key_value_heads": 3, "sliding_window": None}),
    ("qwen2", {"head_dim": 16}),
    ("qwen2", {"num_attention_heads": 6}),
    ("qwen3", {"tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("model_type", "overrides"), FAMILIES)
def test_families_load_and_compute_the_same(
    model_type: str, overrides: dict[str, Any], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model(model_type, **overrides)
    for out, options in ((tmp_path / "q4", {"bits": 4}), (tmp_path / "plain", {})):
        quantized = export(source, out, torch.float16 if options else torch.float32, **options)
        assert compare(source, out, quantized, "float16" if options else "float32") == 0
        assert count_parameters(out) == count_parameters(source)


def test_gains_that_are_stored_less_one(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model("gemma2", query_pre_attn_scalar=32)
    quantized = export(source, tmp_path / "out", torch.float32)
    assert compare(source, tmp_path / "out", quantized, "float32") < 1e-5
    gain = read(tmp_path / "out")["blk.0.attn_norm.weight"].data
    stored = load_file(source / "model.safetensors")["model.layers.0.input_layernorm.weight"]
    np.testing.assert_array_equal(gain, stored.numpy() + 1)


def read(folder: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / GGUF_FILE).tensors}


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"), [(8, True, "Q8_0"), (4, True, "Q4_0"), (4, False, "Q4_1")]
)
def test_codes_survive_bit_for_bit(
    bits: int, symmetric: bool, kind: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model("llama")
    quantized = export(source, tmp_path / "out", bits=bits, symmetric=symmetric)
    tensors = read(tmp_path / "out")
    names = {
        "mlp.down_proj": "ffn_down",
        "self_attn.v_proj": "attn_v",
        "self_attn.k_proj": "attn_k",
    }
    for own, theirs in names.items():
        tensor = quantized[f"model.layers.1.{own}.weight"]
        stored = tensors[f"blk.1.{theirs}.weight"]
        assert stored.tensor_type.name == kind
        num_rows, num_groups = tensor.scale.shape
        blocks = np.array(stored.data).reshape(num_rows, num_groups, -1)
        steps = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
        body = blocks[:, :, 4 if kind == "Q4_1" else 2 :]
        if bits == 8:
            codes = body.view(np.int8)
        else:
            codes = np.concatenate([body & 15, body >> 4], axis=2).astype(np.int8) - 8
        rows = np.arange(num_rows)
        if theirs == "attn_k":  # 2 heads of 32: element i stands beside element i + 16
            rows = np.array(
                [32 * h + half * 16 + i for h in (0, 1) for i in range(16) for half in (0, 1)]
            )
        np.testing.assert_array_equal(codes.reshape(num_rows, -1), tensor.codes.numpy()[rows])
        np.testing.assert_array_equal(steps, tensor.scale.numpy()[rows])


def test_zero_points_cost_no_more_than_the_minimum_in_float16(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model("qwen2")
    quantized = export(source, tmp_path / "out", bits=4, symmetric=False)
    got = load_model(tmp_path / "out", "float32")
    for name, tensor in quantized.items():
        difference = (got.get_parameter(name) - tensor.dequantize()).detach().abs()
        step = tensor.scale.float().repeat_interleave(32, dim=1)
        assert (difference <= 15 * 2.0**-11 * step).all()


def test_the_load_gate_in_a_fresh_process(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """With 3 heads on a hidden size of 64, as uniform pruning leaves it."""
    source = make_model("mistral", num_attention_heads=3, num_key_value_heads=3)
    export(source, tmp_path / "out", bits=4)
    model = load_model(tmp_path / "out", "auto")
    assert model.dtype == torch.float16
    ids = torch.arange(60).view(2, 30) % 300
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1).float()
    nats = float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    described = describe_model(tmp_path / "out", "store://x")
    assert described.num_parameters == count_parameters(source)
    found = check_loads(tmp_path / "out", described, Probe(ids=ids.tolist(), nats_per_token=nats))
    assert found.architecture == "MistralForCausalLM"
    assert found.nats_per_token == pytest.approx(nats, rel=1e-3)
    with pytest.raises(CheckpointError, match="nats/token as in memory"):
        check_loads(tmp_path / "out", described, Probe(ids=ids.tolist(), nats_per_token=nats * 1.1))


def test_embeddings_are_rounded_where_the_width_allows(
    make_model: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide, narrow = make_model("llama"), make_model("llama", hidden_size=48)
    facts = {}
    for source in (wide, narrow):
        out = tmp_path / f"out-{source.name}"
        out.mkdir()
        facts[source] = write(source, out, {}, ["lm_head"], HALF, embeddings="Q8_0")
        kinds = {name: tensor.tensor_type.name for name, tensor in read(out).items()}
        expected = "Q8_0" if source == wide else "F16"
        assert kinds["token_embd.weight"] == kinds["output.weight"] == expected
        assert kinds["blk.0.attn_q.weight"] == "F16"
        assert kinds["output_norm.weight"] == "F32"
    assert "kept_plain" not in facts[wide]
    assert facts[narrow]["kept_plain"] == "output.weight, token_embd.weight"
    assert "no multiple of 32 wide, so not in Q8_0" in caplog.text


def test_the_file_names_what_most_of_it_is(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model("llama")
    for bits, expected in ((8, 7), (4, 2)):
        export(source, tmp_path / str(bits), bits=bits)
        reader = gguf.GGUFReader(tmp_path / str(bits) / GGUF_FILE)
        assert reader.fields["general.file_type"].contents() == expected
    assert reader.fields["llama.attention.key_length"].contents() == 32
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert reader.fields["tokenizer.chat_template"].contents().startswith("{% for m in messages %}")
    assert "torch_dtype" not in load_config(tmp_path / "4")


@pytest.mark.parametrize(("num_heads", "expected"), [(2, "qwen2"), (3, "llama")])
def test_a_qwen2_that_gave_up_heads_is_written_as_a_llama(
    num_heads: int, expected: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model("qwen2", num_attention_heads=num_heads, num_key_value_heads=1)
    export(source, tmp_path / "out", bits=8)
    fields = gguf.GGUFReader(tmp_path / "out" / GGUF_FILE).fields
    assert fields["general.architecture"].contents() == expected


def test_llama3_divides_frequencies_as_transformers_does(make_model: Callable[..., Path]) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    divisors = rope_divisors(config)
    assert divisors is not None
    plain = LLAMA3["rope_theta"] ** (-torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(plain / divisors, scaled, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("model_type", "overrides", "told"),
    [
        ("olmo2", {}, "expected one of the architectures .*, got olmo2"),
        ("mistral", {"sliding_window": 16}, "cannot compute a sliding_window of 16"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "cannot compute rope_type dynamic",
        ),
        ("llama", {"hidden_act": "relu"}, "cannot compute hidden activation relu"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "cannot compute query_pre_attn_scalar 16"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_first(
    model_type: str, overrides: dict[str, Any], told: str, make_model: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=told):
        check_source("gguf", make_model(model_type, **overrides))


def test_more_tokens_than_rows_are_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 200 tokens, .* got a tokenizer with 300"):
        write(make_model("llama", vocab_size=200), tmp_path, {}, ["lm_head"], HALF)


def test_tokenizers_that_llama_cpp_has_no_name_for_are_refused(
    make_model: Callable[..., Path],
) -> None:
    source = make_model("llama")
    path = source / "tokenizer.json"
    about = json.loads(path.read_text())
    assert name_split(about) == "gpt-2"
    about["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="no name for how this tokenizer cuts text"):
        check_source("gguf", source)
    pieces = {"type": "WordPiece", "unk_token": "<s>", "vocab": {"<s>": 0, "a": 1}}
    pieces |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    path.write_text(json.dumps(about | {"model": pieces}))
    with pytest.raises(ValueError, match="expected a BPE tokenizer, got WordPiece"):
        check_source("gguf", source)
    path.unlink()
    with pytest.raises(ValueError, match="expected a tokenizer"):
        check_source("gguf", source)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3, "group_size": 32},
        {"bits": 4, "group_size": 16},
        {"bits": 8, "group_size": None},
        {"bits": 8, "group_size": 32, "symmetric": False},
    ],
)
def test_codes_without_a_block_type_are_refused(
    options: dict[str, Any], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = load_file(source / "model.safetensors")[name]
    quantized = {name: absmax.round_weight(weight, HALF, **options)}
    with pytest.raises(ValueError, match="set group_size: 32 and dtype: float16"):
        write(source, tmp_path, quantized, ["lm_head"], HALF)


def test_a_file_that_is_cut_short_does_not_load(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model("llama")
    export(source, tmp_path / "out", bits=8)
    shutil.copytree(tmp_path / "out", tmp_path / "cut")
    data = (tmp_path / "out" / GGUF_FILE).read_bytes()
    (tmp_path / "cut" / GGUF_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="does not load"):
        load_model(tmp_path / "cut")


@pytest.mark.parametrize(("bits", "per_weight"), [(8, 34 / 32), (4, 18 / 32)])
def test_bytes_on_disk_are_the_formats_arithmetic(
    bits: int, per_weight: float, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model("llama", hidden_size=512, intermediate_size=1536, num_attention_heads=16)
    quantized = export(source, tmp_path / "out", bits=bits)
    num_quantized = sum(tensor.shape.numel() for tensor in quantized.values())
    expected = num_quantized * per_weight + 2 * (count_parameters(source) - num_quantized)
    assert (tmp_path / "out" / GGUF_FILE).stat().st_size == pytest.approx(expected, rel=0.03)
