"""What cannot be quantized is told before the expensive work; what is only odd is quantized."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.preflight import preflight
from infra.storage import FileStore
from tasks.errors import CheckpointError
from tasks.models.checkpoint import load_model
from tasks.models.folder import copy_companions
from tasks.plugins import load_plugin, plugin_constant, plugin_names
from tasks.quantize.checkpoint_tensors import read_tensors
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.methods import absmax
from tasks.recipe_file import load_recipe
from tests.integration.quantize_run import run_stage

CALIBRATED = [n for n in plugin_names("method") if plugin_constant("method", n, "CALIBRATED")]
DISTILL = (
    "steps=[{distill: {losses: [{name: cross_entropy}], num_tokens: 512, batch_blocks: 8, "
    "micro_batch_blocks: 4}}]"
)
TRAIN = "{losses: [{name: forward_kl}], num_tokens: 512, batch_blocks: 8, micro_batch_blocks: 4}"
MIXED = "{bytes: 1000000, bits: [4, 8], num_windows: 8}"
IDS = torch.arange(40).view(2, 20)


@pytest.fixture
def quantized_already(tiny_llama: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Write the tiny Llama in 4 bits, in a format."""

    def write(export_format: str) -> Path:
        layout = find_layout(tiny_llama, trust_remote_code=False)
        names = [name for block in layout.blocks for name in block]
        tensors = {
            name: absmax.round_weight(weight, torch.float16, bits=4, group_size=32)
            for name, weight in read_tensors(tiny_llama, names)
        }
        out = tmp_path / export_format
        out.mkdir()
        plugin = load_plugin("format", export_format)
        plugin(tiny_llama, out, tensors, layout.others, torch.float16)
        copy_companions(tiny_llama, out)
        return out

    return write


@pytest.fixture
def told(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return what a run would say before it begins."""
    monkeypatch.setenv("NIGHTPRESS_HOME", str(tmp_path / "state"))

    def ask(*overrides: str) -> str:
        with pytest.raises(ValueError, match=r".") as caught:
            preflight(load_recipe(recipe_file, ["comparisons=[]", *overrides]))
        return str(caught.value)

    return ask


@pytest.mark.parametrize("export_format", ["compressed_tensors", "gguf", "nightpress"])
def test_a_teacher_that_is_quantized_already(
    export_format: str,
    quantized_already: Callable[[str], Path],
    told: Callable[..., str],
    text_file: Path,
    tmp_path: Path,
) -> None:
    folder = quantized_already(export_format)
    message = told(f"teacher.model={folder}")
    name = export_format.replace("_", "-")
    assert f"is quantized already ({name}); give the model that it was made from" in message
    store = FileStore(f"file://{tmp_path / 'store'}")
    with pytest.raises(CheckpointError, match="not quantized yet"):
        run_stage(folder, text_file, store, tmp_path / "scratch", "absmax")


def test_a_group_size_that_does_not_divide_where_nothing_is_pruned(
    make_llama: Callable[..., Path], told: Callable[..., str]
) -> None:
    teacher = make_llama(intermediate_size=72)
    message = told(f"teacher.model={teacher}", DISTILL)
    assert "int4: group_size must divide every input width" in message
    assert "mlp.down_proj.weight has 72 columns, got group_size 16" in message
    assert "[8, 4] would do" in message


def test_a_format_that_cannot_express_the_teacher(
    make_llama: Callable[..., Path], told: Callable[..., str]
) -> None:
    export = "{name: q8, method: none, format: gguf, dtype: float16}"
    teacher = make_llama(hidden_act="relu")
    message = told(f"teacher.model={teacher}", DISTILL, f"exports=[{export}]")
    assert "exports: q8: " in message and "relu" in message


def test_widths_that_leave_the_method_no_windows(told: Callable[..., str]) -> None:
    message = told(f"exports.0.mixed_precision={MIXED}")
    assert "int4: mixed_precision: num_windows is 8, calibration.num_windows 8" in message
    assert "ask for at most 7" in message


def test_no_calibration_text(told: Callable[..., str], tmp_path: Path) -> None:
    assert "calibration.text: no file" in told(f"calibration.text={tmp_path / 'absent.jsonl'}")
    (tmp_path / "empty.jsonl").touch()
    assert "has no rows" in told(f"calibration.text={tmp_path / 'empty.jsonl'}")
    (tmp_path / "short.jsonl").write_text('{"text": "a word"}\n')
    message = told(f"calibration.text={tmp_path / 'short.jsonl'}")
    assert "8 windows of 32 were asked for" in message and "give more text" in message


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("absmax", {"bits": 5}),
        ("absmax", {"group_size": 0}),
        ("awq", {"rounding": "up"}),
        ("gobo", {"bits": 0}),
        ("gptq", {"damping": 0}),
        ("gptq", {"group_size": -32}),
        ("layer_distill", {"learning_rate": 0}),
        ("layer_distill", {"batch_windows": 0}),
        ("llm_int8", {"threshold": -1}),
        ("nf4", {"block_size": 0}),
    ],
)
def test_an_option_out_of_its_range(
    method: str, options: dict[str, Any], recipe_file: Path
) -> None:
    export = {"name": "q", "method": method, "format": "nightpress", "options": options}
    (option, value) = next(iter(options.items()))
    with pytest.raises(
        ValueError, match=rf"method '{method}': option '{option}': .*, got {value!r}"
    ):
        load_recipe(recipe_file, [f"exports=[{yaml.safe_dump(export, default_flow_style=True)}]"])


@pytest.mark.parametrize("method", CALIBRATED)
def test_training_through_a_calibrated_method(method: str, recipe_file: Path) -> None:
    export = f"{{name: q, method: {method}, format: nightpress, train: {TRAIN}}}"
    with pytest.raises(
        ValueError, match=rf"rounds by the weights alone, got {method}; choose from"
    ):
        load_recipe(recipe_file, [f"exports=[{export}]"])


@pytest.mark.parametrize("method", CALIBRATED)
def test_inputs_that_are_always_zero(
    method: str, tiny_llama: Path, text_file: Path, tmp_path: Path
) -> None:
    """Channels without gain, dead neurons, and in the last block no living neuron at all."""
    model = load_model(tiny_llama)
    with torch.no_grad():
        first, last = model.model.layers
        first.input_layernorm.weight[:3] = 0
        first.mlp.up_proj.weight[5:9] = 0
        last.mlp.up_proj.weight.zero_()
    source = tmp_path / "dead"
    model.save_pretrained(source)
    copy_companions(tiny_llama, source)
    store, scratch = FileStore(f"file://{tmp_path / 'store'}"), tmp_path / "scratch"
    options = {} if method == "llm_int8" else {"bits": 8, "group_size": 16}
    done = run_stage(
        source, text_file, store, scratch, method, export_format="nightpress", **options
    )
    with torch.no_grad():
        exported = load_model(scratch / "out")
        got, expected = exported(IDS).logits, model(IDS).logits
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(value == value for value in done.facts.values()), "NaN"


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("export_format", plugin_names("format"))
def test_the_head_is_tied_as_it_was(
    export_format: str,
    is_tied: bool,
    make_llama: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
) -> None:
    source = make_llama(tie_word_embeddings=is_tied)
    store, scratch = FileStore(f"file://{tmp_path / 'store'}"), tmp_path / "scratch"
    done = run_stage(
        source,
        text_file,
        store,
        scratch,
        "absmax",
        export_format=export_format,
        dtype="float16",
        bits=8,
        group_size=32,
    )
    before, after = load_model(source), load_model(scratch / "out")
    head, embedding = after.get_output_embeddings(), after.get_input_embeddings()
    assert (head.weight is embedding.weight) == is_tied
    assert done.num_parameters == sum(parameter.numel() for parameter in before.parameters())
    with torch.no_grad():
        got, expected = after(IDS).logits, before(IDS).logits
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
