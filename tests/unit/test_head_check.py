"""What a teacher that does not predict the next token cannot do is refused from its config."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.head_check import check_head
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe

CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "max_position_embeddings": 512}
REGRESSION = CLASSIFIER | {"id2label": {"0": "LABEL_0"}}
CAUSAL = {"architectures": ["LlamaForCausalLM"]}
ANSWERS = {"architectures": ["DistilBertForQuestionAnswering"]}
MASKED = {"architectures": ["RobertaForMaskedLM"]}


def make_recipe(folder: Path, **changes: Any) -> Recipe:
    """A recipe that halves a classifier, with `distill_` and `export_` options changed."""
    (folder / "rows.jsonl").write_text(json.dumps({"text": "good", "label": 1}))
    (folder / "teacher").mkdir()
    distill = {"losses": [{"name": "cross_entropy"}, {"name": "forward_kl"}], "num_tokens": 1000}
    distill["initializer"] = {"name": "every_nth_layer"}
    export = {"name": "full", "method": "none", "format": "safetensors"}
    for key in [*changes]:
        part, _, name = key.partition("_")
        if part in ("distill", "export"):
            ({"distill": distill, "export": export}[part])[name] = changes.pop(key)
    raw = {
        "name": "classifier",
        "teacher": {"model": "./teacher"},
        "calibration": {"text": "rows.jsonl"},
        "evaluation": {"text": "rows.jsonl"},
        "corpus": {"sources": [{"name": "local_text", "options": {"path": "rows.jsonl"}}]},
        "steps": [{"distill": distill}],
        "exports": [export],
    } | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("config", [CLASSIFIER, CAUSAL, ANSWERS, MASKED])
def test_a_plain_recipe_suits_every_head(config: dict[str, Any], tmp_path: Path) -> None:
    assert config["architectures"][0] in check_head(make_recipe(tmp_path), config) or (
        config is CAUSAL
    )


def test_a_regression_learns_scores(tmp_path: Path) -> None:
    losses = [{"name": "label_mse"}, {"name": "logit_mse"}, {"name": "hidden_mse"}]
    check_head(make_recipe(tmp_path, distill_losses=losses), REGRESSION)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (REGRESSION, {}, "cross_entropy is not for .* a score; use label_mse"),
        (CLASSIFIER, {"distill_losses": [{"name": "label_mse"}]}, "a distribution; use cross_entr"),
        (CAUSAL, {"distill_losses": [{"name": "label_mse"}]}, "label_mse is not for"),
        (CLASSIFIER, {"distill_teacher": "stored"}, "say teacher: online"),
        (CLASSIFIER, {"distill_initializer": {"name": "low_rank"}}, "use every_nth_layer"),
        (ANSWERS, {"steps": [{"prune": {"sparsity": {"ffn": 0.5}}}]}, "every_nth_layer"),
        (MASKED, {"export_method": "gptq"}, "method gptq is for causal language models"),
        (CLASSIFIER, {"export_format": "gguf"}, "format gguf is for causal"),
        (CLASSIFIER, {"export_runtime": "vllm"}, "runtime vllm is for causal"),
        (
            CLASSIFIER | {"problem_type": "multi_label_classification"},
            {},
            "expected one label or one score",
        ),
        (
            CLASSIFIER,
            {"corpus": {"sources": [{"name": "teacher_samples", "options": {"num_tokens": 9}}]}},
            "source teacher_samples lets the teacher write",
        ),
        (
            CLASSIFIER | {"max_position_embeddings": 128},
            {},
            "block_tokens of at most 128, .* got 256",
        ),
        (
            REGRESSION,
            {"distill_losses": [{"name": "logit_mse"}], "comparisons": ["from_scratch"]},
            "from_scratch learns from the rows' scores",
        ),
    ],
)
def test_what_needs_another_head_is_refused(
    config: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        check_head(make_recipe(tmp_path, **changes), config)


def test_the_recipe_of_distilbert_suits_a_masked_language_model(tmp_path: Path) -> None:
    preset = Path(__file__).parents[2] / "configs" / "bert_to_distilbert_cpu.yaml"
    (tmp_path / "teacher").mkdir()
    (tmp_path / preset.name).write_text(preset.read_text())
    recipe = load_recipe(tmp_path / preset.name)
    assert check_head(recipe, MASKED) == "a masked language model, RobertaForMaskedLM"
    distill = recipe.steps[0].distill
    assert distill is not None
    weights = {loss.name: loss.weight for loss in distill.losses}
    assert weights == {"forward_kl": 5.0, "cross_entropy": 2.0, "hidden_cosine": 1.0}
