"""What flows decide: plan, progress, rows of the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.compress_model import compress
from flows.planning import make_plan, weight_bytes
from flows.progress import LineReporter
from infra.storage import open_store
from tasks.corpus_stages import source_stage
from tasks.inputs import find_inputs
from tasks.models.checkpoint import describe_model
from tasks.recipe_file import load_recipe
from tasks.records import ModelRef
from tasks.stage import Stage
from tasks.stages import distill_stage, from_scratch


def test_a_plan_of_an_empty_store_computes_everything(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    store = open_store(f"file://{tmp_path}/store")
    plan = make_plan(recipe, find_inputs(recipe, store), store)
    titles = [stage.title for stage in plan.stages]
    sources = ["source 1 teacher_samples", "source 2 local_text"]
    assert titles[:5] == ["evaluate teacher", *sources, "corpus", "1 prune"]
    assert titles[-1] == "inspect int8" and len(titles) == 18
    known = [stage.title for stage in plan.stages if stage.outcome == "to compute"]
    assert known == ["evaluate teacher", *sources, "1 prune", "inspect teacher"]
    assert {s.outcome for s in plan.stages if s.title not in known} == {"follows"}
    assert not (tmp_path / "store").exists(), "a plan writes nothing"


def test_weights_at_each_width_and_the_gpu_that_holds_them() -> None:
    """The memory of 65e9 parameters in decimal gigabytes: 260, 130, 65, 32.5."""
    rows = [weight_bytes(65_000_000_000, bits) for bits in (32, 16, 8, 4)]
    assert [row.num_bytes / 1e9 for row in rows] == [260, 130, 65, 32.5]
    assert [row.smallest_gpu_gb for row in rows] == [None, 141, 80, 48]


def test_where_and_for_whom_is_in_no_key(recipe_file: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    keys = set()
    for override in (
        "publish.channel=other",
        "cluster.ray=auto",
        "gate.teacher={}",
        "schedule.deadline='07:00'",
    ):
        recipe = load_recipe(recipe_file, [override])
        inputs = find_inputs(recipe, store)
        keys.add(source_stage(recipe, 1, inputs.teacher, inputs.sources[0]).key)
    assert len(keys) == 1


def test_the_world_size_is_in_trainings_key(recipe_file: Path, tmp_path: Path) -> None:
    keys = set()
    for workers in (1, 2):
        recipe = load_recipe(recipe_file, [f"cluster.workers={workers}"])
        step = recipe.steps[1].distill
        assert step is not None
        teacher = find_inputs(recipe, open_store(f"file://{tmp_path}/store")).teacher
        keys.add(distill_stage(recipe, step, teacher, teacher, teacher).key)  # type: ignore[arg-type]
    assert len(keys) == 2


def test_training_from_scratch_needs_no_teacher_and_changes_nothing_else(
    recipe_file: Path,
) -> None:
    step = load_recipe(recipe_file).steps[1].distill
    assert step is not None
    alone = from_scratch(step)
    assert [loss.name for loss in alone.losses] == ["cross_entropy"]
    assert alone.initializer.name == "fresh"
    changed = {"losses", "initializer"}
    assert alone.model_dump(exclude=changed) == step.model_dump(exclude=changed)


@pytest.mark.parametrize(
    ("initializer", "shape_of"), [("incoming", "1 prune"), ("first_layers", "2 distill")]
)
def test_training_from_scratch_begins_in_the_students_own_shape(
    initializer: str, shape_of: str, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(recipe_file, [f"steps.1.distill.initializer={{name: {initializer}}}"])
    inputs = find_inputs(recipe, open_store(f"file://{tmp_path}/store"))
    stages: dict[str, Stage] = {}

    def complete(title: str, stage: Stage, record_type: type[Any]) -> Any:
        stages[title] = stage
        if record_type is ModelRef:
            return inputs.teacher.model_copy(update={"digest": title})
        return record_type.model_construct(digest=title)

    compress(recipe, inputs, complete, [])
    assert stages["2 distill"].inputs["student"].digest == "1 prune"
    assert stages["2 from scratch"].inputs["student"].digest == shape_of


def test_what_lies_beside_a_model_changes_no_digest(make_llama: Callable[..., Path]) -> None:
    folder = make_llama()  # of its own, since the shared one stays as it is
    before = describe_model(folder, "here")
    (folder / "notes.txt").write_text("nothing that a loader reads")
    assert describe_model(folder, "here") == before


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LineReporter()
    reporter.begin("1 prune")
    reporter.update(1, 4)  # too soon for a line
    reporter.last = 0.0
    reporter.update(2, 4)
    reporter.end("1 prune", "computed", 3.25)
    said = [line.split("  ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said == ["1 prune: 2/4", "1 prune: computed in 3.2 s"]
