import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe
from tasks.recipe_template import TEMPLATE


def test_relative_paths_are_resolved_against_the_recipe(recipe_file: Path) -> None:
    raw = yaml.safe_load(recipe_file.read_text())
    raw["corpus"]["sources"][1]["options"]["path"] = "texts/train.jsonl"
    recipe_file.write_text(yaml.safe_dump(raw))
    recipe = load_recipe(recipe_file)
    expected = str(recipe_file.parent / "texts" / "train.jsonl")
    assert recipe.corpus.sources[1].options["path"] == expected


def test_plugin_defaults_are_filled_in(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.corpus.sources[0].options["temperature"] == 1.0
    assert recipe.steps[1].distill is not None
    assert recipe.steps[1].distill.losses[0].options["temperature"] > 0


def test_overrides_parse_values_as_yaml(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["seed=3", "steps.0.prune.sparsity=0.25", "name=other"])
    assert recipe.seed == 3 and recipe.name == "other"
    assert recipe.steps[0].prune is not None and recipe.steps[0].prune.sparsity == 0.25


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sede=1", "unknown key; known here: calibration, cluster"),
        ("gate.teacher.max_nat=1", "unknown key; known here: max_bytes_ratio, max_nats_increase"),
        ("seed=many", "seed"),
        ("steps.0.prune.sparsity=1.0", "steps.0.prune.sparsity"),
        ("steps.0.prune.sparsity=-0.1", "steps.0.prune.sparsity"),
        ("steps.0.prune.criterion={name: wandaa}", "unknown criterion 'wandaa'; choose from ["),
        ("exports.0.method=gptqq", "unknown method 'gptqq'; choose from ["),
        ("exports.0.format=onnx", "unknown format 'onnx'; choose from ["),
        ("exports.0.options={bits: 4, groups: 3}", "its options are ["),
        ("exports.1.name=int4", "exports must have different names"),
        ("steps.0={}", "exactly one of the keys prune, distill"),
        ("teacher.model=./nowhere", "no folder"),
        ("evaluation.stride=64", "stride must be at most the window"),
        ("steps.9.prune.sparsity=0.1", "expected an index below 2"),
        ("seed", "expected KEY=VALUE"),
        ("name=Big Model", "name"),
    ],
)
def test_wrong_input_is_told_where_and_what(recipe_file: Path, override: str, told: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_recipe(recipe_file, [override])
    assert told in str(caught.value)


def test_yaml_errors_and_absence_are_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [unclosed")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(broken)
    with pytest.raises(ValueError, match="no recipe at"):
        load_recipe(tmp_path / "absent.yaml")


def test_group_sizes_must_divide_one_another(recipe_file: Path) -> None:
    with pytest.raises(ValueError, match="must divide one another"):
        load_recipe(recipe_file, ["exports.1.options={bits: 8, group_size: 24}"])


def test_the_template_is_a_recipe() -> None:
    recipe = Recipe(**yaml.safe_load(TEMPLATE))
    assert recipe.exports[0].name == "int4"


def test_schema_describes_every_key_of_the_gate() -> None:
    schema = Recipe.model_json_schema()
    described = schema["$defs"]["TeacherGate"]["properties"]
    assert all(entry["description"] for entry in described.values())


def test_a_wrong_recipe_is_answered_quickly_and_without_torch(recipe_file: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom tasks.recipe_file import load_recipe\n"
        f"load_recipe(Path({str(recipe_file)!r}))\n"
        "heavy = {'torch', 'ray', 'transformers', 'prefect'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert time.monotonic() - began < 10  # 0.5 s on an idle machine


GGUF_EXPORT = {
    "name": "q4",
    "method": "gptq",
    "format": "gguf",
    "dtype": "float16",
    "options": {"bits": 4, "group_size": 32},
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"runtime": "vllm"}, "runtime vllm cannot read format gguf; choose from ['compressed-"),
        ({"dtype": "bfloat16"}, "takes integer codes with dtype: float16; got dtype: bfloat16"),
        ({"options": {"bits": 3, "group_size": 32}}, "with bits: 4 or 8; got bits: 3"),
        ({"options": {"bits": 4, "group_size": 64}}, "group_size: 32; got group_size: 64"),
        ({"method": "vector_int8", "options": {}}, "group_size: 32; got bits: null"),
        ({"format": "compressed-tensors", "runtime": "llama.cpp"}, "choose from ['gguf']"),
        (
            {"format": "compressed-tensors", "runtime": "vllm", "options": {"bits": 3}},
            "runtime vllm takes integer codes with bits: 4 or 8 or null; got bits: 3",
        ),
        (
            {
                "format": "compressed-tensors",
                "runtime": "vllm",
                "mixed_precision": {"bytes": 10**6, "bits": [2, 8]},
            },
            "runtime vllm takes integer codes with bits: 4 or 8 or null; got bits: 2",
        ),
        (
            {
                "format": "compressed-tensors",
                "method": "absmax",
                "options": {"symmetric": False},
                "mixed_precision": {"bytes": 10**6},
            },
            "takes integer codes with symmetric: true or null; got symmetric: false",
        ),
        ({"format": "nightpress", "runtime": "transformers"}, "cannot read format nightpress"),
    ],
)
def test_a_runtime_that_cannot_read_the_export_is_refused(
    changes: dict[str, Any], told: str, recipe_file: Path
) -> None:
    raw = yaml.safe_load(recipe_file.read_text())
    raw["exports"] = [GGUF_EXPORT | changes]
    recipe_file.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=re.escape(told)):
        load_recipe(recipe_file)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"runtime": "llama.cpp", "options": {"bits": 8, "group_size": 32}},
        {"runtime": "llama.cpp", "method": "none", "options": {}, "dtype": "bfloat16"},
        {
            "runtime": "llama.cpp",
            "method": "absmax",
            "options": {"bits": 4, "group_size": 32, "symmetric": False},
        },
        {"runtime": "vllm", "format": "compressed-tensors"},
        {"runtime": "vllm", "format": "compressed-tensors", "method": "vector_int8", "options": {}},
        {"runtime": "vllm", "format": "compressed-tensors", "method": "fp8", "options": {}},
        {"runtime": "transformers", "format": "compressed-tensors", "options": {"bits": 3}},
    ],
)
def test_a_runtime_that_reads_the_export_is_taken(
    changes: dict[str, Any], recipe_file: Path
) -> None:
    raw = yaml.safe_load(recipe_file.read_text())
    raw["exports"] = [GGUF_EXPORT | changes]
    recipe_file.write_text(yaml.safe_dump(raw))
    assert load_recipe(recipe_file).exports[0].runtime == changes.get("runtime")
