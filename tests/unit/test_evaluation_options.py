"""What a recipe may say of evaluation tasks, and what each thing said enters."""

import json
from pathlib import Path

import pytest

from infra.storage import open_store
from tasks.inputs import find_inputs
from tasks.recipe_file import load_recipe
from tasks.stages import evaluate_stage

ROW = {"text": "the model", "label": 1}
SST2 = '{name: sst2, data: rows.jsonl, prompt: "{text}:", verbalizers: {"0": " bad", "1": " good"}}'


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.tasks=[{name: a, data: d, prompt: x}]", "prompt and verbalizers go together"),
        (
            'evaluation.tasks=[{name: a, data: d, prompt: x, verbalizers: {"0": a, "1": b}}]',
            "must hold {text}",
        ),
        (
            "evaluation.tasks=[{name: a, data: d, metrics: [f1, pearson]}]",
            "a task has one kind",
        ),
        ("evaluation.tasks=[{name: a, data: d}, {name: a, data: e}]", "twice"),
        ("evaluation.tasks=[{name: a, data: d, metric: f1}]", "known here: data, labels, metrics"),
        ("evaluation.tasks=[{name: a, lm_eval: b, shots: 1}]", "known here: include, limit"),
        ("gate.teacher.max_score_drop={rte: 0.01}", "are no names of evaluation.tasks"),
        ("gate.champion.must_not_fall=[rte]", "are no names of evaluation.tasks"),
        ("evaluation.latency={batch_sizes: []}", "latency"),
    ],
)
def test_a_wrong_task_is_named(shared_recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        load_recipe(shared_recipe, [override])


def test_a_tasks_data_and_options_enter_the_key(recipe_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW) + "\n")
    store = open_store(f"file://{tmp_path}/store")

    def key(*overrides: str) -> str:
        recipe = load_recipe(recipe_file, list(overrides))
        inputs = find_inputs(recipe, store)
        return evaluate_stage(recipe, inputs.teacher, inputs.evaluation, inputs.tasks).key

    plain, once = key(), key(f"evaluation.tasks=[{SST2}]")
    again = key(f"evaluation.tasks=[{SST2}]")
    other = key(f"evaluation.tasks=[{SST2.replace('good', 'fine')}]")
    data.write_text(json.dumps(ROW | {"label": 0}) + "\n" * 2)
    changed = key(f"evaluation.tasks=[{SST2}]")
    assert once == again
    assert len({plain, once, other, changed}) == 4


def test_inputs_are_checked_before_anything_is_computed(recipe_file: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")

    def find(task: str) -> None:
        find_inputs(load_recipe(recipe_file, [f"evaluation.tasks=[{task}]"]), store)

    with pytest.raises(ValueError, match=r"a causal language model is asked in words"):
        find("{name: a, data: rows.jsonl}")
    with pytest.raises(ValueError, match=r"evaluation.tasks: sst2: data: no file"):
        find(SST2)
    own = tmp_path / "own"
    own.mkdir()
    (own / "task.yaml").write_text("task: own\ndoc_to_text: !function code.text\n")
    with pytest.raises(ValueError, match=r"runs Python code \(!function\)"):
        find("{name: a, lm_eval: own, include: own}")
