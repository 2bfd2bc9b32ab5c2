"""Memory, stated before a stage runs and measured while it does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import worker_memory
from flows.machine_checks import GIB, check_memory
from flows.planning import Plan, PlannedStage, make_plan
from infra.local_executor import LocalExecutor
from infra.peak_memory import read_peak, reset_peak
from infra.storage import open_store
from tasks.inputs import find_inputs
from tasks.models.dimensions import Dimensions, read_dimensions
from tasks.recipe_file import load_recipe

LLAMA_7B = Dimensions(6_738_415_616, 4096, 11008, 32, 32000, 1, False, "float16")
MIB = 2**20


def plan_of(recipe_file: Path, tmp_path: Path, *overrides: str) -> Plan:
    recipe = load_recipe(recipe_file, list(overrides))
    store = open_store(f"file://{tmp_path}/store")
    return make_plan(recipe, find_inputs(recipe, store), store)


def test_one_blocks_repair_is_what_the_page_on_pruning_says() -> None:
    """GiB of a 7B Llama's block: 0.25 + 0.45 + 3.5, and 16.4 of activations."""
    refined = worker_memory.repair_bytes({"refine": 3}, LLAMA_7B, 0.5)
    plain = worker_memory.repair_bytes({"refine": 0}, LLAMA_7B, 0.5)
    assert plain / GIB == pytest.approx(0.25 + 0.45, abs=0.01)
    assert (refined - plain) / GIB == pytest.approx(3.5, abs=0.05)
    tokens = 2 * 128 * 256
    width = LLAMA_7B.ffn + 2 * LLAMA_7B.hidden
    activations = worker_memory.REPAIR_FLOATS * worker_memory.FLOAT * tokens * width
    assert activations / GIB == pytest.approx(16.4, abs=0.05)
    assert 4 * LLAMA_7B.block / GIB == pytest.approx(0.75, abs=0.01)


def test_what_it_takes_is_what_the_stages_take() -> None:
    from tasks.distill.deepspeed_config import BUCKET_ELEMENTS
    from tasks.evaluate.speed import SPEED_BATCH
    from tasks.prune.criteria.reconstruction import GRAM_BYTES
    from tasks.prune.loss import BATCH_WINDOWS
    from tasks.prune.sweep.sweep import FIT_PER_SCORED, SUBMODELS_PER_PASS
    from tasks.quantize.mixed_precision import WINDOWS_TOGETHER

    assert worker_memory.BUCKET_ELEMENTS == BUCKET_ELEMENTS
    assert worker_memory.SPEED_BATCH == SPEED_BATCH
    assert worker_memory.CRITERION_BYTES == GRAM_BYTES
    assert worker_memory.LOSS_WINDOWS == BATCH_WINDOWS
    assert worker_memory.FIT_PER_SCORED == FIT_PER_SCORED
    assert worker_memory.SUBMODELS_PER_PASS == SUBMODELS_PER_PASS
    assert worker_memory.MEASURED_WINDOWS == WINDOWS_TOGETHER


def test_a_layer_at_a_time_is_quantized() -> None:
    """A 7B Llama is 25 GiB in float32; what is held grows with the text and not with the depth."""
    options = {"method": "gptq", "mixed_precision": None, "num_windows": 128, "window": 2048}
    held = worker_memory.quantize_bytes(options, LLAMA_7B)
    assert 8 * GIB < held < 16 * GIB
    more = worker_memory.quantize_bytes(options | {"num_windows": 129}, LLAMA_7B)
    assert more - held == 2 * 2048 * 4096 * 4
    deeper = LLAMA_7B._replace(
        num_parameters=LLAMA_7B.num_parameters + 32 * LLAMA_7B.block, num_layers=64
    )
    assert worker_memory.quantize_bytes(options, deeper) == pytest.approx(held, rel=1e-6)
    assert worker_memory.quantize_bytes(options | {"method": "absmax"}, LLAMA_7B) < 3 * GIB


def test_a_streamed_model_takes_one_blocks_room(recipe_file: Path) -> None:
    step = load_recipe(recipe_file).steps[0].prune
    assert step is not None
    options = step.model_dump() | {"num_windows": 8, "window": 256}
    whole = worker_memory.prune_bytes(options, LLAMA_7B, is_streamed=False)
    streamed = worker_memory.prune_bytes(options, LLAMA_7B, is_streamed=True)
    assert whole - streamed == 4 * 31 * LLAMA_7B.block
    unrepaired = worker_memory.prune_bytes(options | {"repair": False}, LLAMA_7B, True)
    assert streamed - unrepaired > 4 * 30 * LLAMA_7B.block


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_embd": 768, "n_layer": 12, "vocab_size": 50257, "n_inner": None}, (3072, 1, True)),
        (
            {
                "text_config": {
                    "hidden_size": 64,
                    "num_hidden_layers": 2,
                    "vocab_size": 99,
                    "intermediate_size": 256,
                    "moe_intermediate_size": 32,
                    "num_experts": 8,
                    "tie_word_embeddings": False,
                }
            },
            (32, 8, False),
        ),
    ],
)
def test_dimensions_by_any_familys_names(config: dict[str, Any], expected: tuple[int, ...]) -> None:
    found = read_dimensions(config, 10**6)
    assert found is not None
    assert (found.ffn, found.num_experts, found.is_tied) == expected
    assert read_dimensions(config | {"text_config": None, "vocab_size": None}, 10**6) is None


def test_a_plan_states_every_stages_memory(recipe_file: Path, tmp_path: Path) -> None:
    plan = plan_of(recipe_file, tmp_path)
    stages = {stage.title: stage for stage in plan.stages}
    assert all(stage.peak_bytes for stage in plan.stages)
    assert (stages["quantize int4"].workers, stages["quantize int8"].workers) == (1, 2)
    on_cards = plan_of(recipe_file, tmp_path, "cluster.gpus_per_worker=1")
    for there, here in zip(on_cards.stages, plan.stages, strict=True):
        assert there.peak_bytes is not None and here.peak_bytes is not None
        assert here.peak_bytes - there.peak_bytes == worker_memory.LIBRARIES_BYTES
    (alone,) = (
        stage
        for stage in plan_of(recipe_file, tmp_path, *NO_TEACHER).stages
        if stage.title == "2 distill"
    )
    (both,) = (stage for stage in on_cards.stages if stage.title == "2 distill")
    assert alone.peak_bytes is not None and both.peak_bytes is not None
    assert alone.peak_bytes < both.peak_bytes


NO_TEACHER = (
    "cluster.gpus_per_worker=1",
    "steps.1.distill.losses=[{name: cross_entropy, weight: 1.0}]",
)


def test_what_config_does_not_tell_is_not_stated(
    make_llama: Callable[..., Path], recipe_file: Path, tmp_path: Path
) -> None:
    folder = make_llama()
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    plan = plan_of(recipe_file, tmp_path, f"teacher.model={folder}")
    assert {stage.peak_bytes for stage in plan.stages} == {None}
    found = check_memory(load_recipe(recipe_file), plan)
    assert found.level == "ok" and "nothing" in found.message


def planned(title: str, outcome: str, gib: float, workers: int) -> PlannedStage:
    return PlannedStage.model_validate(
        {
            "title": title,
            "outcome": outcome,
            "seconds": 1.0,
            "basis": "arithmetic",
            "peak_bytes": round(gib * GIB),
            "workers": workers,
        }
    )


def test_the_largest_stage_to_compute_is_held_against_the_machine(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.machine_checks.available_bytes", lambda: 8 * GIB)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = load_recipe(recipe_file)
    stages = [
        planned("1 prune", "cached", 50, 2),
        planned("quantize", "follows", 6, 1),
        planned("evaluate", "to compute", 3.5, 2),
    ]
    small = Plan(
        stages=stages,
        weights=[],
        seconds_to_compute=0,
        cluster="2xcpu",
        price=None,
        currency="EUR",
    )
    assert "7.0 GiB in 2 workers for evaluate" in check_memory(recipe, small).message
    large = small.model_copy(update={"stages": [*stages, planned("2 distill", "follows", 5, 2)]})
    with pytest.raises(ValueError, match=r"2 distill needs about 10\.0 GiB in 2 workers, 8\.0 GiB"):
        check_memory(recipe, large)
    elsewhere = load_recipe(recipe_file, ["cluster.ray=auto"])
    assert "6.0 GiB a worker, for quantize" in check_memory(elsewhere, large).message


def fill(state: int, size: int) -> int:
    return len(b"x" * size) + state


def test_the_peak_is_of_what_ran_since() -> None:
    assert fill(0, 300 * MIB) == 300 * MIB
    high = read_peak()
    reset_peak()
    low = read_peak()
    assert high - low > 250 * MIB
    executor = LocalExecutor()
    assert executor.peak_bytes is None
    assert list(executor.map(fill, [100 * MIB, 1], lambda: 0)) == [100 * MIB, 1]
    assert executor.peak_bytes is not None
    assert 90 * MIB < executor.peak_bytes - low < 200 * MIB
