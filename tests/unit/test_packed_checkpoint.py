"""nightpress's own layout: what it holds, what it computes, and files that lie."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.storage import FileStore
from tasks.errors import CheckpointError
from tasks.models.checkpoint import count_parameters, describe_model, load_model
from tasks.models.folder import load_config, model_files
from tasks.models.packed_checkpoint import load_packed, read_packed
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.plain import PlainTensor
from tasks.models.quantized_linear import BinaryLinear, Int8Linear, PackedLinear
from tasks.models.quantized_tensor import QuantizedTensor
from tasks.plugins import plugin_names
from tasks.publish.load_check import Probe, check_loads
from tasks.publish.loader_process import LoaderProcess
from tasks.publish.model_card import write_model_card
from tasks.quantize.block import Block
from tasks.quantize.checkpoint_tensors import read_tensors
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.formats import nightpress
from tasks.quantize.methods import absmax, binary, fp8, gobo, llm_int8, nf4, vector_int8
from tests.unit.artifact_factory import store_artifact, write_files

FP32 = torch.float32
IDS = torch.arange(40).view(2, 20)
DOWN = "model.layers.1.mlp.down_proj"


def quantize_each(source: Path) -> dict[str, QuantizedTensor]:
    """Quantize the second block's weights, each in another encoding, and the first's in int4."""
    layout = find_layout(source, trust_remote_code=False)
    weights = dict(read_tensors(source, [name for block in layout.blocks for name in block]))
    done: dict[str, QuantizedTensor] = {
        name: absmax.round_weight(weights[name], FP32, bits=4, group_size=16)
        for name in layout.blocks[0]
    }
    q, k, v, o, gate, up, down = layout.blocks[1]
    is_outlier = torch.arange(weights[gate].shape[1]) % 10 == 0
    done[q] = gobo.quantize_weight(weights[q])
    done[k] = nf4.quantize_weight(weights[k])
    done[v] = fp8.quantize_weight(weights[v], FP32)
    done[o] = binary.quantize_weight(o, weights[o], FP32)
    done[gate] = llm_int8.quantize_weight(gate, weights[gate], is_outlier, FP32)
    done[up] = vector_int8.quantize(Block({up: weights[up]}, FP32))[up]
    done[down] = binary.quantize_weight(down, weights[down], FP32, activations=True)
    return done


@pytest.fixture(scope="module")
def quantized(tiny_llama: Path) -> dict[str, QuantizedTensor]:
    return quantize_each(tiny_llama)


@pytest.fixture
def packed(tiny_llama: Path, quantized: dict[str, QuantizedTensor], tmp_path: Path) -> Path:
    out = tmp_path / "packed"
    out.mkdir()
    nightpress.write(tiny_llama, out, quantized, ["lm_head"], FP32)
    return out


def test_every_encoding_fits() -> None:
    assert set(nightpress.HOLDS) == set(plugin_names("encoding"))


def test_the_files_and_what_they_stand_for(
    packed: Path, tiny_llama: Path, quantized: dict[str, QuantizedTensor]
) -> None:
    names = ["config.json", "nightpress.json", "nightpress.safetensors"]
    assert sorted(path.name for path in packed.iterdir()) == names
    assert model_files(packed) == names
    assert count_parameters(packed) == count_parameters(tiny_llama)
    record = describe_model(packed, "store://x")
    assert record.num_parameters == count_parameters(tiny_llama)
    back = read_packed(packed)
    assert {tensor.kind for tensor in back.values()} == set(plugin_names("encoding"))
    for name, value in read_tensors(tiny_llama):
        expected = quantized[name].dequantize() if name in quantized else value
        assert torch.equal(back[name].dequantize(), expected)
    stored = sum(8 * t.numel() * t.itemsize for t in load_file(packed / names[2]).values())
    assert stored == sum(tensor.num_bits for tensor in back.values())


def test_effective_bits_are_of_what_is_quantized(
    tiny_llama: Path, quantized: dict[str, QuantizedTensor], tmp_path: Path
) -> None:
    name = f"{DOWN}.weight"
    facts = nightpress.write(tiny_llama, tmp_path, {name: quantized[name]}, [], torch.bfloat16)
    assert facts["effective_bits"] == 1 + 32 / 64
    assert nightpress.write(tiny_llama, tmp_path, {}, [], torch.bfloat16)["effective_bits"] == 16


def test_layers_quantize_their_inputs_where_the_method_does(
    packed: Path, tiny_llama: Path, quantized: dict[str, QuantizedTensor]
) -> None:
    model = load_model(packed)
    layer = model.model.layers[1]
    assert isinstance(layer.mlp.gate_proj, Int8Linear)
    assert isinstance(layer.mlp.up_proj, Int8Linear)
    assert layer.mlp.gate_proj.columns is not None
    assert layer.mlp.up_proj.columns is None
    assert isinstance(layer.mlp.down_proj, BinaryLinear)
    assert isinstance(layer.self_attn.q_proj, torch.nn.Linear)
    assert not model.training

    expected = load_model(tiny_llama)
    with torch.no_grad():
        for name, tensor in quantized.items():
            expected.get_parameter(name).copy_(tensor.dequantize())
        got = model(input_ids=IDS, output_hidden_states=True).hidden_states
        wanted = expected(input_ids=IDS, output_hidden_states=True).hidden_states
    assert torch.equal(got[1], wanted[1])
    assert not torch.equal(got[2], wanted[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_it_loads_in_any_dtype_with_biases_and_an_untied_head(
    dtype: str, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)
    layout = find_layout(source, trust_remote_code=False)
    weights = dict(read_tensors(source, list(layout.blocks[0])))
    tensors = vector_int8.quantize(Block(weights, FP32))
    nightpress.write(source, tmp_path, tensors, layout.others, torch.bfloat16)
    model = load_model(tmp_path, dtype)
    assert model.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    plain = load_model(source, "float32")
    with torch.no_grad():
        got, expected = model(input_ids=IDS).logits, plain(input_ids=IDS).logits
    assert torch.nn.functional.cosine_similarity(got.float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_layers_give_the_same_logits(
    bits: int, symmetric: bool, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)
    layout = find_layout(source, trust_remote_code=False)
    names = [*layout.blocks[0], *layout.blocks[1], "lm_head.weight"]
    weights = dict(read_tensors(source, names))
    gate = "model.layers.1.mlp.gate_proj.weight"
    tensors = absmax.quantize(
        Block(weights, FP32), bits=bits, group_size=16, symmetric=symmetric
    ) | {gate: absmax.round_weight(weights[gate], FP32, bits=8, group_size=16)}
    nightpress.write(source, tmp_path, tensors, [], FP32)
    packed = load_packed(tmp_path, "auto", trust_remote_code=False, packed=True)
    plain = load_packed(tmp_path, "auto", trust_remote_code=False, packed=False)
    kept = [name for name, layer in packed.named_modules() if isinstance(layer, PackedLinear)]
    assert len(kept) == 14 and "lm_head" in kept and gate.removesuffix(".weight") not in kept
    assert not any(isinstance(layer, PackedLinear) for layer in plain.modules())
    held = sum(t.nbytes for t in packed.get_submodule(kept[0]).buffers() if t.dtype != FP32)
    assert held <= weights[f"{kept[0]}.weight"].numel() * (bits + 1) / 8
    with torch.no_grad():
        got, expected = packed(input_ids=IDS).logits, plain(input_ids=IDS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    alone = load_packed(tmp_path, "auto", trust_remote_code=False)
    with torch.no_grad():  # there is no GPU, so nothing stays packed
        assert torch.cuda.is_available() or torch.equal(alone(input_ids=IDS).logits, expected)


def test_weights_stay_packed_on_a_gpu_unless_a_dtype_is_asked_for(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.models.packed_checkpoint.pick_device", lambda: "cuda")
    path = "layers.0.mlp.up_proj"
    for dtype, kind in ("auto", PackedLinear), (FP32, torch.nn.Linear):
        model = load_packed(packed, dtype, trust_remote_code=False)
        assert isinstance(model.model.get_submodule(path), kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.ones(64, 5)}, "expected a scale .64, groups., groups a divisor of 32"),
        ({"scale": torch.ones(63, 2)}, "expected a scale"),
        ({"zero": torch.zeros(64, 1, dtype=torch.int8)}, "expected an int8 zero point"),
        ({"zero": torch.zeros(64, 2)}, "expected an int8 zero point"),
    ],
)
def test_packed_parts_that_lie_are_an_error(
    change: dict[str, torch.Tensor],
    message: str,
    tiny_llama: Path,
    quantized: dict[str, QuantizedTensor],
    tmp_path: Path,
) -> None:
    """Multiplied as they are, they would be read beyond their end."""
    name = "model.layers.0.mlp.up_proj.weight"
    whole = quantized[name]
    assert isinstance(whole, IntegerTensor)
    nightpress.write(tiny_llama, tmp_path, quantized | {name: replace(whole, **change)}, [], FP32)
    with pytest.raises(CheckpointError, match=message):
        load_packed(tmp_path, FP32, trust_remote_code=False, packed=True)


def test_its_own_modelling_code_runs_only_where_it_is_trusted(packed: Path) -> None:
    code = "from transformers import LlamaForCausalLM\n\nclass Own(LlamaForCausalLM): ...\n"
    (packed / "modeling_own.py").write_text(code)
    config = load_config(packed) | {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (packed / "config.json").write_text(json.dumps(config))
    trusted = load_packed(packed, FP32, trust_remote_code=True)
    plain = load_packed(packed, FP32, trust_remote_code=False)
    assert (type(trusted).__name__, type(plain).__name__) == ("Own", "LlamaForCausalLM")
    with torch.no_grad():
        assert torch.equal(trusted(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_plain_transformers_refuses_it(packed: Path) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(packed)


def test_a_fresh_process_loads_it_and_the_evidence_names_the_loader(
    packed: Path, tiny_llama: Path
) -> None:
    with torch.no_grad():
        logits = load_model(packed)(input_ids=IDS).logits[:, :-1].flatten(0, 1)
    nats = float(torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten()))
    record = describe_model(packed, "store://x", count_parameters(tiny_llama))
    probe = Probe(ids=IDS.tolist(), nats_per_token=nats)
    with LoaderProcess() as loader:
        first = loader.start()
        evidence = check_loads(packed, record, probe, loader=loader)
        assert first.poll() is not None, "what has imported nightpress is no stranger any more"
        assert check_loads(packed, record, probe, loader=loader) == evidence
    assert evidence.loader == "nightpress"
    assert evidence.nats_per_token == pytest.approx(nats, rel=1e-4)
    (packed / "nightpress.json").write_text("{}")
    with pytest.raises(CheckpointError, match="load gate: nightpress cannot load it"):
        check_loads(packed, record, probe)


def test_the_card_says_that_nobody_else_reads_it(tmp_path: Path) -> None:
    store = FileStore(f"file://{tmp_path / 'store'}")
    manifest = store_artifact(store, write_files(tmp_path / "files", "x"))
    evidence = manifest.load_check.model_copy(update={"loader": "nightpress"})
    own = manifest.model_copy(update={"load_check": evidence})
    card = write_model_card(own, store.uri)
    assert "plain transformers refuses it" in card
    assert "library_name: nightpress" in card
    assert 'load_model(Path("DEST"), "auto")' in card
    assert "AutoModelForCausalLM" not in card
    assert "AutoModelForCausalLM" in write_model_card(manifest, store.uri)


def edit(packed: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = packed / "nightpress.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def about(said: dict[str, Any], block: int = 1, name: str = "mlp.down_proj") -> dict[str, Any]:
    found: dict[str, Any] = said["tensors"][f"model.layers.{block}.{name}.weight"]
    return found


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "version": (lambda said: said.update(version=2), "expected version 1 of the layout, got 2"),
    "no tensors": (lambda said: said.pop("tensors"), "KeyError"),
    "a list": (lambda said: said.update(tensors=[]), "AttributeError"),
    "one less": (lambda said: said["tensors"].pop(f"{DOWN}.weight"), "name different parts"),
    "dtype": (
        lambda said: about(said)["parts"]["alpha"].update(dtype="float16"),
        r"down_proj.weight.alpha: expected .*float16.* got .*float32",
    ),
    "shape of a part": (
        lambda said: about(said)["parts"]["alpha"].update(shape=[1]),
        r"expected .*\[1\].*got .*\[32, 1\]",
    ),
    "shape": (lambda said: about(said).update(shape=[64, 32]), r"expected shape \[64, 32\]"),
    "kind": (lambda said: about(said).update(kind="../../recipe"), "unknown encoding"),
    "kind of another": (lambda said: about(said).update(kind="float8"), "KeyError"),
    "number": (lambda said: about(said).update(kind=7), "AttributeError"),
    "columns": (
        lambda said: about(said)["about"].update(num_columns=63),
        r"expected shape \[32, 64\], got \[32, 63\]",
    ),
    "negative columns": (lambda said: about(said)["about"].update(num_columns=-3), "shape"),
    "activations": (lambda said: about(said)["about"].update(activations="int8"), "binary"),
    "bits": (
        lambda said: about(said, 0)["about"].update(bits=10**9),
        "expected 1 to 8 bits, got 1000000000",
    ),
    "other bits": (lambda said: about(said, 0)["about"].update(bits=8), "expected shape"),
    "blocks": (
        lambda said: about(said, 1, "self_attn.k_proj")["about"].update(block_size=10**12),
        "expected scales of shape",
    ),
    "blocks of 0": (
        lambda said: about(said, 1, "self_attn.k_proj")["about"].update(block_size=0),
        "ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_lies_is_an_error(lie: str, packed: Path) -> None:
    change, message = LIES[lie]
    edit(packed, change)
    with pytest.raises(CheckpointError, match=message):
        load_packed(packed, FP32, trust_remote_code=False)


def test_parts_that_lie_are_an_error(packed: Path) -> None:
    path = packed / "nightpress.safetensors"
    whole = path.read_bytes()
    parts = load_file(path)
    for part, value in {
        "model.layers.1.self_attn.q_proj.weight.outlier_positions": 10**6,
        "model.layers.1.mlp.gate_proj.weight.columns": 10**6,
    }.items():
        save_file(parts | {part: torch.full_like(parts[part], value)}, path)
        with pytest.raises(CheckpointError, match="does not load: IndexError"):
            load_packed(packed, FP32, trust_remote_code=False)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="SafetensorError"):
        load_packed(packed, FP32, trust_remote_code=False)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not load"):
        load_packed(packed, FP32, trust_remote_code=False)


def test_a_table_shorter_than_its_codes_is_an_error(packed: Path) -> None:
    path = packed / "nightpress.safetensors"
    name = "model.layers.1.self_attn.q_proj.weight"
    parts = load_file(path)
    save_file(parts | {f"{name}.table": parts[f"{name}.table"][:2].clone()}, path)
    edit(packed, lambda said: said["tensors"][name]["parts"]["table"].update(shape=[2]))
    with pytest.raises(CheckpointError, match="IndexError"):
        load_packed(packed, FP32, trust_remote_code=False)


def test_parameters_of_another_model_are_an_error(
    packed: Path, make_llama: Callable[..., Path]
) -> None:
    wider = make_llama(intermediate_size=96)
    (packed / "config.json").write_bytes((wider / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="does not load"):
        load_packed(packed, FP32, trust_remote_code=False)


def test_only_a_linear_layer_has_a_quantized_input(
    packed: Path, tiny_llama: Path, quantized: dict[str, QuantizedTensor], tmp_path: Path
) -> None:
    embedding = "model.embed_tokens.weight"
    (value,) = (v for _, v in read_tensors(tiny_llama, [embedding]))
    tensors = quantized | {embedding: binary.quantize_weight("e", value, FP32, activations=True)}
    out = tmp_path / "out"
    out.mkdir()
    nightpress.write(tiny_llama, out, tensors, [], FP32)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight: expected a linear layer's"):
        load_packed(out, FP32, trust_remote_code=False)


def test_plain_parameters_keep_their_bytes(packed: Path, tiny_llama: Path) -> None:
    back = read_packed(packed)
    norm = back["model.norm.weight"]
    assert isinstance(norm, PlainTensor)
    assert torch.equal(norm.value, dict(read_tensors(tiny_llama))["model.norm.weight"])
