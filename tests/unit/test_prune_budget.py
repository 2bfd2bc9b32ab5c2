"""A budget leads to the shape that loses least under it, and one that cannot be kept says so."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig

from flows.planning import make_plan
from flows.preflight import check_shape
from infra.storage import open_store
from tasks.inputs import Inputs, find_inputs
from tasks.models.checkpoint import describe_model
from tasks.prune.budgets import latency
from tasks.prune.budgets.budget import Cost, Room, best_shape, find_finalists, interpolate_rise
from tasks.prune.budgets.latency import Protocol
from tasks.prune.budgets.room import count_parameters, find_budget_groups, find_room
from tasks.prune.pruning import prune
from tasks.prune.shapes.shape import check_prunable
from tasks.prune.shapes.stock_class import empty_model, make_model
from tasks.prune_options import PruneOptions
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe
from tasks.records import ModelRef, TextRef
from tasks.stages import prune_stage
from tests.unit.stage_space import make_space

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def options(**budget: Any) -> dict[str, Any]:
    return PruneOptions(budget=budget).model_dump()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_shape_under_the_budget_is_better(data: st.DataObject) -> None:
    """Against all shapes one by one, at random costs and losses."""
    kinds = data.draw(
        st.sets(st.sampled_from(["kv_groups", "ffn", "hidden", "layers"]), min_size=1)
    )
    choices = {
        kind: tuple(sorted(data.draw(st.sets(st.integers(1, 9), min_size=1)))) for kind in kinds
    }
    room = Room({kind: numbers[-1] for kind, numbers in choices.items()}, choices)
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    parts = {kind: rng.uniform(0, 9, 2) for kind in kinds}

    def cost_of(shape: dict[str, int]) -> float:
        return float(np.prod([parts[kind][0] + parts[kind][1] * n for kind, n in shape.items()]))

    cost = Cost(room, [cost_of(corner) for corner in room.corners()])
    losses = {kind: np.sort(rng.uniform(0, 3, len(n)))[::-1].copy() for kind, n in choices.items()}
    shapes = [dict(zip(choices, n, strict=True)) for n in product(*choices.values())]
    budget = data.draw(st.sampled_from([cost_of(shape) for shape in shapes]))

    def loss_of(shape: dict[str, int]) -> float:
        return float(sum(losses[kind][choices[kind].index(n)] for kind, n in shape.items()))

    best = best_shape(room, cost, losses, budget)
    assert best is not None
    fitting = [shape for shape in shapes if cost_of(shape) <= budget * (1 + 1e-9)]
    assert best in fitting
    assert loss_of(best) == pytest.approx(min(map(loss_of, fitting)))
    assert best in find_finalists(room, cost, losses, budget)
    pair = {kind: best[kind] for kind in sorted(kinds)[:-1]}
    allowed = [s for s in fitting if not pair or any(s[kind] != pair[kind] for kind in pair)]
    second = best_shape(room, cost, losses, budget, refused=[pair]) if pair and allowed else None
    if second is not None:
        assert second in allowed
        assert loss_of(second) == pytest.approx(min(map(loss_of, allowed)))
    else:
        assert not pair or not allowed
    assert best_shape(room, cost, losses, min(map(cost_of, shapes)) * 0.99) is None


def test_parameters_are_linear_in_each_kind() -> None:
    """What the corners cost says what any shape costs, to the last parameter."""
    for tied in (True, False):
        model = empty_model(LlamaConfig(**LLAMA, tie_word_embeddings=tied))
        groups, kinds = find_budget_groups(model, options(bytes=1)["budget"])
        room = find_room(model, groups, kinds, 1)
        assert room.num_units == {"kv_groups": 2, "ffn": 64, "hidden": 48, "layers": 3}
        cost = Cost(room, [count_parameters(model, groups, c) for c in room.corners()])
        for shape in (
            {"kv_groups": 1, "ffn": 17, "hidden": 30, "layers": 2},
            {"kv_groups": 2, "ffn": 64, "hidden": 48, "layers": 3},
        ):
            assert cost.of(shape) == pytest.approx(count_parameters(model, groups, shape), abs=1e-6)
        assert count_parameters(model, groups, room.num_units) == model.num_parameters()


def test_losses_between_levels() -> None:
    """Through what was measured, never less loss for fewer units, and nothing for none cut."""
    found = interpolate_rise([1, 2, 3, 4, 6, 8], {1: 4.0, 2: 1.0, 4: 0.5, 6: 0.7, 8: 0.0})
    assert found[[0, 1, 3, 5]] == pytest.approx([4.0, 1.0, 0.7, 0.0])  # 6 lost more than 4 did
    assert np.all(np.diff(found) <= 0)


@pytest.fixture
def source(make_llama: Callable[..., Path]) -> Path:
    return make_llama(num_hidden_layers=4, hidden_size=48, head_dim=16, intermediate_size=96)


@pytest.fixture
def run(
    source: Path, text_file: Path, tmp_path: Path
) -> Callable[..., tuple[ModelRef, Any, dict[str, Any]]]:
    """Run the stage on a random Llama; return its record, the model and the evidence."""

    def start(alignment: int = 16, **chosen: Any) -> tuple[ModelRef, Any, dict[str, Any]]:
        space = make_space(tmp_path / "store", tmp_path / "scratch")
        settings = {"method": "criterion", "windows_per_submodel": 2} | chosen
        given = PruneOptions(**settings).model_dump() | {
            "seed": 0,
            "alignment": alignment,
            "num_windows": 12,
            "window": 32,
            "trust_remote_code": False,
        }
        text = TextRef(uri=str(text_file), digest="", num_bytes=0)
        record = prune(space, given, model=describe_model(source, str(source)), calibration=text)
        evidence = json.loads(space.store.read("stages/prune/key/evidence.json"))
        return record, AutoModelForCausalLM.from_pretrained(space.out).eval(), evidence

    return start


def check_alignment(model: Any, alignment: int) -> None:
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert all(layer.in_features % alignment == 0 for layer in layers)


@pytest.mark.parametrize(
    ("budget", "per_parameter"),
    [({"num_parameters": 40_000}, 1), ({"bytes": 160_000}, 4)],
)
def test_sizes_are_kept(
    run: Callable[..., Any], budget: dict[str, int], per_parameter: int
) -> None:
    record, model, evidence = run(budget=budget)
    (name, asked), size = next(iter(budget.items())), model.num_parameters() * per_parameter
    assert 0.8 * asked < size <= asked
    assert record.num_parameters == model.num_parameters()
    assert record.facts[f"{name}_got"] == size
    check_alignment(model, 16)
    found = evidence["budget"]
    assert len(found["sensitivities"]) > 8
    least = min(f["nats_per_token"] for f in found["finalists"])
    (chosen,) = [f for f in found["finalists"] if f["num_kept"] == found["chosen"]]
    assert chosen["nats_per_token"] == least
    assert chosen["num_kept"]["hidden"] == model.config.hidden_size


def test_a_budget_may_name_the_kinds(run: Callable[..., Any]) -> None:
    record, model, _ = run(budget={"num_parameters": 80_000, "kinds": ["ffn"]})
    assert model.config.num_hidden_layers == 4 and model.config.hidden_size == 48
    assert 70_000 < model.num_parameters() <= 80_000
    assert record.facts["shape"].startswith("KV groups 2 -> 2, FFN 96 -> ")


def test_time_is_kept(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun reads what was measured. The clock is one that no other program disturbs."""
    monkeypatch.setattr(latency, "time_forward", lambda model, protocol: num_layers(model) + 0.25)
    budget = {"latency_ms": 3.0, "batch": 4, "tokens": 64, "kinds": ["layers"]}
    record, model, evidence = run(budget=budget)
    assert (record.facts["latency_ms_got"], record.facts["latency_ms_dense"]) == (2.25, 4.25)
    assert "4 x 64 tokens, float32, cpu, 1 threads" in record.facts["latency_protocol"]
    assert num_layers(model) == 2
    assert model.config.intermediate_size == 96
    again, _, seen = run(budget=budget)
    assert again == record
    assert seen == evidence


def num_layers(model: Any) -> int:
    return int(model.config.num_hidden_layers)


def test_a_longer_model_takes_longer() -> None:
    short, long = (
        make_model(LlamaConfig(**LLAMA | {"num_hidden_layers": number})) for number in (1, 12)
    )
    times = [latency.time_forward(model.eval(), Protocol(4, 64)) for model in (short, long)]
    assert 0 < times[0] < times[1]


def test_a_budget_below_the_smallest_shape_names_it(tmp_path: Path) -> None:
    model = empty_model(LlamaConfig(**LLAMA))
    model.config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"num_parameters 2,000, the smallest possible is 4,400 .KV groups 2 -> 1"
    ):
        check_prunable(tmp_path, options(num_parameters=2_000), alignment=16)
    with pytest.raises(ValueError, match=r"bytes 1,000,000, the model has \d{3},\d{3}: .*nothing"):
        check_prunable(tmp_path, options(bytes=1_000_000), alignment=16)
    prospect = check_prunable(tmp_path, options(num_parameters=30_000), alignment=16)
    assert str(prospect).startswith("budget num_parameters 30,000 of ")


def test_a_kind_that_cannot_be_cut_is_refused() -> None:
    model = empty_model(LlamaConfig(**LLAMA))
    with pytest.raises(ValueError, match=r"llama cannot give up experts .*\{kv_groups: 0\.5"):
        find_budget_groups(model, options(bytes=1, kinds=["experts"])["budget"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of sparsity and budget, got none"),
        ({"sparsity": 0.5, "budget": {"bytes": 9}}, "exactly one of sparsity and budget, got both"),
        ({"budget": {}}, "exactly one of num_parameters, bytes, latency_ms, got none"),
        ({"budget": {"bytes": 9, "latency_ms": 1}}, "got bytes and latency_ms"),
        ({"budget": {"bytes": 9}, "shape": "padded"}, "kept by shape: uniform, got padded"),
    ],
)
def test_how_much_is_said_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneOptions(**given)


def test_the_flow_says_what_a_budget_means(recipe_file: Path, tmp_path: Path) -> None:
    """The plan that it is solved in the run; the preflight that it can be, or not."""
    store = open_store(f"file://{tmp_path}/store")

    def ask(budget: str) -> tuple[Recipe, Inputs]:
        recipe = load_recipe(
            recipe_file, ["steps.0.prune.sparsity=null", f"steps.0.prune.budget={budget}"]
        )
        return recipe, find_inputs(recipe, store)

    recipe, inputs = ask("{num_parameters: 15000}")
    (note,) = [stage.note for stage in make_plan(recipe, inputs, store).stages if stage.note]
    assert note == "to num_parameters 15,000; the shape is solved in the run"
    assert "budget num_parameters 15,000 of " in check_shape(recipe, inputs, store).message
    with pytest.raises(ValueError, match=r"bytes 4,000, the smallest possible is \d\d,\d\d\d"):
        check_shape(*ask("{bytes: 4000}"), store)
    timed = "measured and solved in the run"
    assert timed in check_shape(*ask("{latency_ms: 0.5}"), store).message


def test_where_a_time_is_measured_is_in_the_key(recipe_file: Path, tmp_path: Path) -> None:
    model = ModelRef(uri="", digest="", architecture="", num_parameters=1, num_bytes=1)
    text = TextRef(uri="", digest="", num_bytes=0)
    for budget, num_keys in (("{latency_ms: 2}", 2), ("{bytes: 2}", 1)):
        keys = set()
        for threads in (1, 2):
            overrides = ["steps.0.prune.sparsity=null", f"steps.0.prune.budget={budget}"]
            recipe = load_recipe(recipe_file, [*overrides, f"cluster.threads_per_worker={threads}"])
            assert recipe.steps[0].prune is not None
            keys.add(prune_stage(recipe, recipe.steps[0].prune, model, text).key)
        assert len(keys) == num_keys
