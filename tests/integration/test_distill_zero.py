"""ZeRO on two ranks: every stage trains the same student, and goes on from its checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.storage import FileStore
from tasks.models.checkpoint import load_model
from tests.integration.distill_driver import PREFIX
from tests.integration.rank_group import run_ranks

pytestmark = pytest.mark.integration

EVERYTHING = [
    {"name": "cross_entropy", "options": {}, "weight": 0.5},
    {"name": "forward_kl", "options": {"temperature": 2.0}, "weight": 0.5},
    {"name": "hidden_mse", "options": {"layers": "all"}, "weight": 0.1},
    {"name": "attention_maps", "options": {"layers": "all"}, "weight": 0.1},
]

Train = Callable[..., tuple[list[float], dict[str, torch.Tensor]]]


@pytest.fixture
def folders(make_llama: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Teacher, a narrower student, and a corpus."""
    teacher = make_llama(seed=1, hidden_size=64, num_hidden_layers=4, head_dim=16)
    student = make_llama(seed=2, hidden_size=48, num_attention_heads=2)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    ids = torch.randint(300, (40, 32), generator=torch.Generator().manual_seed(0))
    blocks = {"ids": ids.int(), "loss_mask": torch.ones_like(ids, dtype=torch.uint8)}
    save_file(blocks, corpus / "blocks.safetensors")
    return teacher, student, corpus


@pytest.fixture
def train(folders: tuple[Path, Path, Path], tmp_path: Path) -> Train:
    """Train a student, on two ranks by default; return its losses and its weights."""

    def run(name: str, **how: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
        store = FileStore(f"file://{tmp_path / name}")
        calls = len(list(tmp_path.iterdir()))
        rendezvous = tmp_path / f"rendezvous_{calls}"
        said = run_ranks(store.uri, folders, rendezvous, losses=EVERYTHING, **how)
        if "stop_after" in how:
            assert set(said) == {"stopped"}
            return [], {}
        assert set(said) == {None}
        trained = json.loads(store.read(f"{PREFIX}/trained.json"))
        assert trained["facts"]["layer_map"] == "0:1 1:3"
        load_model(store.root / trained["folder"])
        curve = json.loads(store.read(f"{PREFIX}/loss_curve.json"))["points"]
        weights = load_file(store.root / trained["folder"] / "model.safetensors")
        return [point["loss"] for point in curve], weights

    return run


def check_resume(train: Train, **how: Any) -> list[float]:
    """Train through, and in two launches; return the losses, which must be the same."""
    losses, weights = train("whole", **how)
    train("stopped", stop_after=4, checkpoint_steps=4, **how)
    resumed, again = train("stopped", checkpoint_steps=4, **how)
    assert resumed == losses
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    return losses


def test_zero_3_partitions_both_models_and_resumes_to_the_same_bytes(train: Train) -> None:
    losses = check_resume(train, zero_stage=3, activation_checkpointing=True)
    assert losses[-1] < losses[0]


def check_other_numbers_of_ranks(train: Train, numbers: list[int], **how: Any) -> None:
    """Train on two ranks through; then on each of `numbers` for two steps, one from the other's
    checkpoint: the same steps, but for the order of sums."""
    losses, _ = train("two", **how)
    for index, number in enumerate(numbers):
        end = {} if index == 2 else {"stop_after": 2 * index + 2}
        changing, _ = train("changing", checkpoint_steps=2, num_ranks=number, **end, **how)
    assert changing == pytest.approx(losses, rel=1e-5)


def test_fewer_ranks_go_on_from_a_checkpoint_of_more(train: Train) -> None:
    check_other_numbers_of_ranks(train, [2, 2, 1], zero_stage=1)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_ranks_may_go_and_come(train: Train, zero_stage: int) -> None:
    """Three ranks do not divide the batch: two of their six passes weigh nothing."""
    check_other_numbers_of_ranks(train, [3, 1, 2], zero_stage=zero_stage)


def test_a_rank_that_hangs_is_named(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    store = FileStore(f"file://{tmp_path / 'store'}")
    waiting, _ = run_ranks(store.uri, folders, tmp_path / "rendezvous", hanging=1)
    (hung,) = json.loads(store.read(f"{PREFIX}/progress.json"))["ranks"][1:]
    assert waiting is not None
    assert f"rank 1 (process {hung['pid']} on {hung['host']}) of 2 did not answer" in waiting


@pytest.mark.slow
def test_every_stage_trains_the_same_student(train: Train) -> None:
    plain = check_resume(train, zero_stage=0)
    for how in (
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 2, "offload": "cpu"},
        {"zero_stage": 3},
        {"zero_stage": 3, "offload": "cpu"},
        {"zero_stage": 1, "activation_checkpointing": True},
    ):
        losses, _ = train("_".join(map(str, how.values())), **how)
        assert losses == pytest.approx(plain, rel=1e-5), how


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_every_stage_resumes_to_the_same_bytes(train: Train, zero_stage: int, dtype: str) -> None:
    check_resume(train, zero_stage=zero_stage, dtype=dtype)


@pytest.mark.slow
def test_adapters_are_trained_under_zero_3(train: Train) -> None:
    losses, _ = train("lora", zero_stage=3, trainable="lora", learning_rate=1e-2)
    assert losses[-1] < losses[0]
