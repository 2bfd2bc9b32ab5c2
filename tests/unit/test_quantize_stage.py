"""The quantize stage: the quantized prefix, resuming in the middle, and input that cannot work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.storage import FileStore
from tasks.digests import digest_file, list_files
from tasks.errors import CheckpointError
from tasks.models.checkpoint import describe_model, load_model, load_tokenizer
from tasks.plugins import resolve_options
from tasks.quantize.calibration import advance, collect_hessians, enter_model
from tasks.quantize.checkpoint_tensors import stored_bytes
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.methods import absmax
from tasks.quantize.mixed_precision import stored_bits
from tasks.quantize.quantization import quantize_model
from tasks.records import ModelRef, TextRef
from tests.unit.stage_space import make_space


class Killed(Exception):
    pass


class DyingStore(FileStore):
    """Stores `lives` units, then the process is gone before the next is stored."""

    def __init__(self, uri: str, lives: int) -> None:
        super().__init__(uri)
        self.lives = lives

    def create(self, key: str, data: bytes) -> bool:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        return super().create(key, data)


@dataclass
class Exported:
    record: ModelRef
    out: Path
    progress: list[tuple[int, int]]


@pytest.fixture
def export(text_file: Path, tmp_path: Path) -> Callable[..., Exported]:
    """Run the stage in this process, on a store of the test's own."""
    attempts = iter(range(100))

    def run(
        source: Path,
        method: str = "gptq",
        export_format: str = "compressed-tensors",
        dtype: str = "float32",
        store: FileStore | None = None,
        mixed_precision: dict[str, Any] | None = None,
        **method_options: Any,
    ) -> Exported:
        progress: list[tuple[int, int]] = []
        attempt = f"attempt{next(attempts)}"
        space = make_space(
            store or tmp_path / attempt,
            tmp_path / f"scratch-{attempt}",
            prefix="stages/quantize/key",
            attempt=attempt,
            progress=lambda done, total: progress.append((done, total)),
        )
        options = {
            "method": method,
            "method_options": resolve_options("method", method, method_options),
            "format": export_format,
            "format_options": {},
            "mixed_precision": mixed_precision,
            "dtype": dtype,
            "num_windows": 8,
            "window": 32,
            "trust_remote_code": False,
        }
        record = quantize_model(
            space,
            options,
            model=describe_model(source, str(source)),
            calibration=TextRef(uri=str(text_file), digest="text", num_bytes=1),
        )
        return Exported(record, space.out, progress)

    return run


def digests(folder: Path) -> dict[str, str]:
    return {path: digest_file(folder / path) for path in list_files(folder)}


def test_the_export_and_its_record(
    make_llama: Callable[..., Path], export: Callable[..., Exported]
) -> None:
    source = make_llama(num_hidden_layers=3)
    done = export(source, bits=4, group_size=16, dtype="float16")
    before = describe_model(source, str(source))
    assert done.record.architecture == "LlamaForCausalLM"
    assert done.record.num_parameters == before.num_parameters
    assert done.record.num_bytes == sum(p.stat().st_size for p in done.out.iterdir())
    assert done.record.facts["effective_bits"] == 4 + 16 / 16
    assert done.record.facts["max_damping"] == 0.01
    nearest = export(source, method="absmax", bits=4, group_size=16, dtype="float16")
    assert 0 < done.record.facts["mean_output_error"] < 0.05
    assert 0 < nearest.record.facts["mean_weight_error"] < 0.05
    assert nearest.record.num_bytes == done.record.num_bytes
    assert set(list_files(source)) == set(list_files(done.out))  # the tokenizer came along
    assert done.progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert load_tokenizer(done.out).chat_template


@pytest.mark.parametrize("method", ["gptq", "absmax"])
def test_a_killed_stage_resumes_to_the_same_bytes(
    method: str, make_llama: Callable[..., Path], export: Callable[..., Exported], tmp_path: Path
) -> None:
    source = make_llama(num_hidden_layers=3)
    whole = export(source, method=method, bits=4, group_size=16)
    uri = f"file://{tmp_path / 'killed'}"
    for lives in (1, 1):
        with pytest.raises(Killed):
            export(source, method=method, store=DyingStore(uri, lives), bits=4, group_size=16)
    resumed = export(source, method=method, store=FileStore(uri), bits=4, group_size=16)
    assert resumed.progress == [(2, 3), (3, 3)]
    assert digests(resumed.out) == digests(whole.out)
    assert resumed.record.digest == whole.record.digest


def test_the_plain_checkpoint_in_another_dtype(
    tiny_llama: Path, export: Callable[..., Exported]
) -> None:
    done = export(tiny_llama, method="none", export_format="safetensors", dtype="bfloat16")
    model, before = load_model(done.out, "auto"), load_model(tiny_llama, "bfloat16")
    assert model.dtype == torch.bfloat16
    for name, parameter in before.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    assert done.record.facts == {"num_flushed": 0, "effective_bits": 16}


def test_a_group_size_that_does_not_divide(
    make_llama: Callable[..., Path], export: Callable[..., Exported]
) -> None:
    source = make_llama(intermediate_size=172)
    with pytest.raises(ValueError) as caught:
        export(source, group_size=32)
    message = str(caught.value)
    assert "model.layers.0.mlp.down_proj.weight has 172 columns, got group_size 32" in message
    assert "[4]" in message and "group_size: null" in message


def test_a_model_that_is_quantized_already(
    tiny_llama: Path, export: Callable[..., Exported]
) -> None:
    once = export(tiny_llama, method="absmax", bits=8)
    with pytest.raises(CheckpointError, match="not quantized yet"):
        export(once.out, method="absmax", bits=8)


def test_stacked_experts_are_refused(
    tokenizer: Any, export: Callable[..., Exported], tmp_path: Path
) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    source = random_model(tmp_path / "moe", "qwen3_moe", tokenizer, head_dim=8, **experts)
    with pytest.raises(ValueError, match=r"stacked experts .*; use method none"):
        export(source, method="absmax")
    done = export(source, method="none", export_format="safetensors")
    assert done.record.num_parameters == describe_model(source, "x").num_parameters
    load_model(done.out)


def random_model(folder: Path, model_type: str, tokenizer: Any, **settings: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 8, "head_dim": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_blocks_run_one_by_one_as_in_the_model(
    model_type: str, settings: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    source = random_model(tmp_path, model_type, tokenizer, **settings)
    ids = torch.arange(3 * 24).view(3, 24)
    prefix = enter_model(Path, str(source), ids, trust_remote_code=False)
    for _ in prefix.blocks:
        advance(prefix, {})
    model = load_model(source)
    with torch.no_grad():
        expected = model.base_model(input_ids=ids).last_hidden_state
        got = model.base_model.norm(torch.cat(prefix.streams))
    assert torch.allclose(got, expected, atol=1e-5)


def test_hessians_are_sums_over_the_inputs_behind_the_quantized_prefix(tiny_llama: Path) -> None:
    ids = torch.arange(4 * 16).view(4, 16)
    layout = find_layout(tiny_llama, trust_remote_code=False)
    prefix = enter_model(Path, str(tiny_llama), ids, trust_remote_code=False)
    model = load_model(tiny_llama)
    first = {
        name: absmax.round_weight(model.get_parameter(name).detach(), torch.float32, bits=2)
        for name in layout.blocks[0]
    }
    advance(prefix, first)
    hessians = collect_hessians(prefix, list(layout.blocks[1]))

    inputs: dict[str, torch.Tensor] = {}
    for name in layout.blocks[1]:
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda module, args, name=name: inputs.update({name: args[0].flatten(0, 1)})
        )
    with torch.no_grad():
        for name, tensor in first.items():
            model.get_parameter(name).copy_(tensor.dequantize())
        model(input_ids=ids)
    assert list(hessians) == list(layout.blocks[1])
    for name, x in inputs.items():
        assert hessians[name].dtype == torch.float64
        assert torch.allclose(hessians[name], (x.T @ x).double(), rtol=1e-4, atol=1e-4)
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    query = hessians[f"{attention}.q_proj.weight"]
    assert query is hessians[f"{attention}.k_proj.weight"]
    assert query is hessians[f"{attention}.v_proj.weight"]
    assert hessians[f"{mlp}.gate_proj.weight"] is hessians[f"{mlp}.up_proj.weight"]
    assert query is not hessians[f"{attention}.o_proj.weight"]


def test_mixed_precision_keeps_the_budget_and_loads(
    make_llama: Callable[..., Path], export: Callable[..., Exported]
) -> None:
    source = make_llama(num_hidden_layers=3)
    layout = find_layout(source, trust_remote_code=False)
    shapes = {name: shape for block in layout.blocks for name, shape in block.items()}
    rest = stored_bytes(source, torch.float16, without=shapes)
    at = {
        bits: sum(stored_bits(shape, bits, 16, torch.float16) for shape in shapes.values()) // 8
        for bits in (2, 4, 8)
    }
    budget = rest + (at[2] + at[8]) // 2
    mixed = {"bytes": budget, "bits": [2, 4, 8], "num_windows": 2}
    for method in ("absmax", "gptq"):
        done = export(
            source, method=method, dtype="float16", mixed_precision=mixed, bits=4, group_size=16
        )
        tensors = (done.out / "model.safetensors").stat().st_size
        assert rest + at[2] < tensors < budget + 8192  # the header's names
        facts = done.record.facts
        counted = {key: str(facts[key]) for key in facts if key.startswith("weights_at_")}
        assert len(counted) > 1
        assert sum(int(text.split()[0]) for text in counted.values()) == 21
        model = load_model(done.out, "auto")
        assert torch.isfinite(model(input_ids=torch.arange(20)[None]).logits).all()
