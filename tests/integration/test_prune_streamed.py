"""The prune stage on a model whose blocks are streamed: the same bytes as on a loaded one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.ray_cluster import RayExecutor
from infra.storage import FileStore
from tasks.models.checkpoint import describe_model
from tasks.models.streaming import is_streamed
from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune.criteria import taylor
from tasks.prune.unit_statistics import calibrate
from tasks.recipe_file import load_recipe
from tasks.records import TextRef
from tasks.stages import prune_stage
from tests.integration.prune_run import Pruned, run_stage

pytestmark = pytest.mark.usefixtures("one_thread")

CRITERIA: list[dict[str, Any]] = [
    {"name": "reconstruction", "options": {}},
    {"name": "activation_norm", "options": {}},
    {"name": "magnitude", "options": {"scope": "layer"}},
    {"name": "random", "options": {}},
    {"name": "block_influence", "options": {}},
    {"name": "ablation", "options": {"num_windows": 1}},
]


@pytest.fixture(scope="module")
def half_precision(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in bfloat16, so that every block is converted before it runs."""
    folder = tmp_path_factory.mktemp("bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture
def run(half_precision: Path, text_file: Path, tmp_path: Path) -> Callable[..., Pruned]:
    attempts = iter(range(100))

    def start(**options: Any) -> Pruned:
        name = f"attempt{next(attempts)}"
        store = FileStore(f"file://{tmp_path / name}")
        return run_stage(half_precision, text_file, store, tmp_path / f"{name}-scratch", **options)

    return start


def both(run: Callable[..., Pruned], **options: Any) -> None:
    loaded, streamed = (run(offload=offload, **options) for offload in ("none", "layers"))
    assert streamed.evidence == loaded.evidence
    assert streamed.record.digest == loaded.record.digest


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: str(criterion["name"]))
def test_every_criterion_sees_the_same(run: Callable[..., Pruned], criterion: Any) -> None:
    both(run, criterion=criterion, method="criterion", refine=0)


@pytest.mark.parametrize(
    "options",
    [
        {"repair": True},
        {"repair": False},
        {"repair": False, "sparsity": {"layers": 0.5}},
        {"sparsity": {"ffn": 0.5, "hidden": 0.5}, "method": "criterion", "refine": 0},
        {"shape": "padded", "refine": 0},
    ],
    ids=str,
)
def test_sweep_repair_and_cut_are_the_same(
    run: Callable[..., Pruned], options: dict[str, Any]
) -> None:
    both(run, **options)


@pytest.mark.integration
def test_two_workers_stream_to_the_same_bytes(run: Callable[..., Pruned], tmp_path: Path) -> None:
    loaded = run()
    executor = RayExecutor("local", 2, 0, 1, tmp_path)
    try:
        streamed = run(executor=executor, offload="layers")
    finally:
        executor.close()
    assert streamed.evidence == loaded.evidence
    assert streamed.record.digest == loaded.record.digest


@pytest.fixture
def bench(half_precision: Path, text_file: Path, recipe_file: Path) -> Bench:
    """What a worker of the stage builds when the recipe asks for it."""
    recipe = load_recipe(recipe_file, ["cluster.offload=layers"])
    assert recipe.steps[0].prune
    model = describe_model(half_precision, str(half_precision))
    text = TextRef(uri=str(text_file), digest="", num_bytes=0)
    stage = prune_stage(recipe, recipe.steps[0].prune, model, text)
    return build_bench(Work(Path, model.uri, text.uri, stage.options | stage.execution))


def test_the_recipe_says_so(bench: Bench) -> None:
    streamed = [p for p in bench.model.parameters() if is_streamed(p)]
    assert {p.dtype for p in streamed} == {torch.bfloat16}
    assert len(streamed) == 2 * 7


def test_it_is_no_part_of_the_key(half_precision: Path, recipe_file: Path) -> None:
    model = describe_model(half_precision, str(half_precision))
    text = TextRef(uri="text", digest="", num_bytes=0)
    keys = set()
    for offload in ("none", "layers"):
        recipe = load_recipe(recipe_file, [f"cluster.offload={offload}"])
        assert recipe.steps[0].prune
        keys.add(prune_stage(recipe, recipe.steps[0].prune, model, text).key)
    assert len(keys) == 1


def test_gradients_are_refused(bench: Bench) -> None:
    calibrated, _ = calibrate(bench.model, bench.groups, bench.ids_WS, num_kept=[])
    with pytest.raises(ValueError, match=r"taylor needs gradients.*offload: layers"):
        taylor.score(calibrated)
