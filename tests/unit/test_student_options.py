"""What a recipe says about the student: its source, its initialiser, what of it is trained."""

import json
import shutil
from pathlib import Path

import pytest

from flows.preflight import check_model
from infra.storage import open_store
from tasks.inputs import find_inputs
from tasks.models.checkpoint import describe_model
from tasks.recipe_file import load_recipe
from tasks.records import CorpusRef, ModelRef
from tasks.stage import Stage
from tasks.stages import distill_stage, from_scratch

STEP = "steps.1.distill"


def stage_of(recipe_file: Path, overrides: list[str], store: Path) -> Stage:
    recipe = load_recipe(recipe_file, overrides)
    inputs = find_inputs(recipe, open_store(f"file://{store}"))
    step = recipe.steps[1].distill
    assert step
    pruned = ModelRef(uri="p", digest="p", architecture="L", num_parameters=1, num_bytes=1)
    student = inputs.students.get(step.student, pruned)
    corpus = CorpusRef.model_construct(uri="c", digest="c")
    return distill_stage(recipe, step, inputs.teacher, student, corpus)


def test_trainable_is_a_word_or_a_mapping(shared_recipe: Path) -> None:
    short, long = (
        load_recipe(shared_recipe, [f"{STEP}.trainable={value}"]).steps[1].distill
        for value in ("lora", "{kind: lora, rank: 8, alpha: 16}")
    )
    assert short and short == long and short.trainable.kind == "lora"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lorra", r"'full', 'top_layers', 'lora', 'qlora'"),
        ("{kind: lora, ranks: 2}", r"known here: alpha, kind, rank, target_modules"),
        ("{kind: top_layers, rank: 2}", r"known here: kind, num_layers$"),
        ("{kind: qlora, rank: 0}", r"rank: Input should be greater than 0, got 0"),
    ],
)
def test_a_wrong_trainable_says_what_is_known(
    value: str, message: str, shared_recipe: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(shared_recipe, [f"{STEP}.trainable={value}"])


def test_another_model_is_the_stages_student(
    recipe_file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Its digest enters the key, and where it lies does not."""
    shutil.copytree(tiny_llama, recipe_file.parent / "other")
    shutil.copytree(tiny_llama, recipe_file.parent / "moved")
    here, there, without = (
        stage_of(recipe_file, overrides, tmp_path)
        for overrides in (
            [f"{STEP}.student.model=other"],
            [f"{STEP}.student.model=./moved"],
            [],
        )
    )
    expected = describe_model(recipe_file.parent / "other", "other")
    assert here.inputs["student"].digest == expected.digest
    assert here.inputs["student"].uri == str((recipe_file.parent / "other").resolve())
    assert here.key == there.key != without.key
    assert without.inputs["student"].digest == "p"


def test_a_student_that_is_not_there_is_named(shared_recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"distill\.student\.model: no folder /.*nowhere"):
        load_recipe(shared_recipe, [f"{STEP}.student.model=./nowhere"])


def test_the_preflight_refuses_a_student_of_another_tokenizer(
    recipe_file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    told = json.loads((other / "tokenizer.json").read_text())
    told["added_tokens"].append(told["added_tokens"][0] | {"id": 300, "content": "<other>"})
    (other / "tokenizer.json").write_text(json.dumps(told))
    store = open_store(f"file://{tmp_path}/store")
    for model, refused in ((tiny_llama, False), (other, True)):
        recipe = load_recipe(recipe_file, [f"{STEP}.student.model={model}"])
        inputs = find_inputs(recipe, store)
        if not refused:
            assert check_model(recipe, inputs, store).level == "ok"
            continue
        with pytest.raises(ValueError, match=r"300 and 301 tokens.*choose a student"):
            check_model(recipe, inputs, store)


def test_factored_needs_trust_before_the_night(shared_recipe: Path) -> None:
    chosen = f"{STEP}.initializer={{name: low_rank, options: {{keep: factored}}}}"
    with pytest.raises(ValueError, match=r"trust_remote_code: false; .* keep: folded"):
        load_recipe(shared_recipe, [chosen])
    load_recipe(shared_recipe, [chosen, "teacher.trust_remote_code=true"])


def test_from_scratch_trains_everything(shared_recipe: Path) -> None:
    step = load_recipe(shared_recipe, [f"{STEP}.trainable=lora"]).steps[1].distill
    assert step and from_scratch(step).trainable.kind == "full"


@pytest.mark.parametrize("wrong", ["trainable=qlora", "student.model=some/model"])
def test_rounding_is_not_trained_through_adapters(wrong: str, recipe_file: Path) -> None:
    train = "{losses: [{name: cross_entropy}], num_tokens: 64}"
    overrides = [f"exports.1.train={train}"]
    load_recipe(recipe_file, overrides)
    with pytest.raises(ValueError, match=r"expected no student, and trainable: full or top_layers"):
        load_recipe(recipe_file, [*overrides, f"exports.1.train.{wrong}"])
