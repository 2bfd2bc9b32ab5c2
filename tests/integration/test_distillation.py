"""Distillation on real Ray and DeepSpeed: what it learns, what it says, and what kills cost."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.ray_cluster import RayExecutor
from infra.storage import FileStore, localize
from tasks.distill.checkpoints import newest_marker
from tasks.distill.distillation import shared_vocab_size
from tasks.distill.job import TrainingJob
from tasks.distill.rounding import round_in_forward
from tasks.distill.training import train_on_rank
from tasks.errors import CheckpointError
from tasks.models.checkpoint import load_model
from tasks.quantize.decoder_blocks import find_blocks, linear_weights
from tasks.quantize.methods import absmax
from tasks.records import ModelRef
from tests.integration.distill_driver import PREFIX, make_options, run_distill

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NUM_STEPS = 24
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def folders(
    make_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """Teacher, student and corpus, sized so that a step takes a tenth of a second."""
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "head_dim": 16}
    teacher = make_llama(seed=1, intermediate_size=192, **shape)
    student = make_llama(seed=2, intermediate_size=96, **shape)
    corpus = tmp_path_factory.mktemp("corpus")
    ids = torch.randint(300, (200, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.uint8)
    mask[::3, :20] = 0  # as in a chat, where the prompt is not learned
    save_file({"ids": ids.int(), "loss_mask": mask}, corpus / "blocks.safetensors")
    return teacher, student, corpus


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    running = RayExecutor("local", 2, 0, 1, tmp_path_factory.mktemp("scratch"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def undisturbed(
    executor: RayExecutor,
    folders: tuple[Path, Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ModelRef, FileStore, Path, list[tuple[int, int]]]:
    """Record, store, output folder and progress of a run that nothing happened to."""
    store = FileStore(f"file://{tmp_path_factory.mktemp('store')}")
    seen: list[tuple[int, int]] = []
    record, space = run_distill(
        executor, store.uri, *folders, progress=lambda *step: seen.append(step)
    )
    return record, store, space.out, seen


def read_json(store: FileStore, name: str) -> Any:
    return json.loads(store.read(f"{PREFIX}/{name}"))


def wait_for(store: FileStore, name: str, condition: Callable[[Any], bool]) -> Any:
    """Return a JSON object of the stage as soon as it is there and meets the condition."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if store.exists(f"{PREFIX}/{name}") and condition(value := read_json(store, name)):
            return value
        time.sleep(0.01)
    raise AssertionError(f"{name} did not come within {TIMEOUT_S} s")


def pids(progress: Any) -> list[int]:
    return [rank["pid"] for rank in progress["ranks"]]


def newest_checkpoint(store: FileStore) -> int:
    """Steps done at the newest complete checkpoint; 0 where there is none."""
    marker = newest_marker(store, PREFIX)
    return int(Path(marker).stem) if marker else 0


def test_the_student_learns_and_loads(
    undisturbed: tuple[ModelRef, FileStore, Path, list[tuple[int, int]]],
    folders: tuple[Path, Path, Path],
    executor: RayExecutor,
) -> None:
    record, store, out, seen = undisturbed
    assert record.facts["num_steps"] == NUM_STEPS
    assert record.facts["tokens"] == NUM_STEPS * 64 * 64
    assert record.facts["final_loss"] < record.facts["initial_loss"]
    assert (out / "tokenizer.json").read_bytes() == (folders[1] / "tokenizer.json").read_bytes()
    before, after = load_model(folders[1]), load_model(out)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (folders[1], out)]
    assert configs[0] == configs[1]
    changed = [
        not torch.equal(old, new)
        for old, new in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert all(changed)
    curve = read_json(store, "loss_curve.json")
    assert [point["step"] for point in curve["points"]] == list(range(NUM_STEPS))
    for point in curve["points"]:
        terms = point["terms"]
        mixed = 0.5 * terms["cross_entropy"] + 0.5 * terms["forward_kl"]
        assert point["loss"] == pytest.approx(mixed, rel=1e-5)
    assert curve["tokens_per_s"] > 0
    assert seen[-1] == (NUM_STEPS, NUM_STEPS)
    assert executor.nodes == set(read_json(store, "trained.json")["nodes"])
    assert store.list(f"{PREFIX}/checkpoints/") == []


def test_kills_cost_the_steps_since_the_last_checkpoint(
    undisturbed: tuple[ModelRef, FileStore, Path, list[tuple[int, int]]],
    folders: tuple[Path, Path, Path],
    executor: RayExecutor,
    tmp_path: Path,
) -> None:
    """First the driver is killed, then, in the same command started again, one of the ranks."""
    store = FileStore(f"file://{tmp_path}")
    command = [sys.executable, "-m", "tests.integration.distill_driver", store.uri]
    driver = subprocess.Popen([*command, *map(str, folders)], cwd=ROOT)
    first = wait_for(store, "progress.json", lambda progress: newest_checkpoint(store) > 0)
    driver.kill()
    driver.wait()
    launches: list[Any] = []

    def kill_a_rank() -> None:
        second = wait_for(store, "progress.json", lambda p: pids(p) != pids(first))
        wait_for(store, "progress.json", lambda p: newest_checkpoint(store) > second["step"])
        os.kill(pids(second)[1], signal.SIGKILL)
        third = wait_for(store, "progress.json", lambda p: pids(p) != pids(second))
        launches.extend([second, third])

    killer = threading.Thread(target=kill_a_rank)
    killer.start()
    record, _ = run_distill(executor, store.uri, *folders)
    killer.join()
    steps = [launch["step"] for launch in launches]
    assert 0 < steps[0] < steps[1] < NUM_STEPS  # each went on where the one before had come to
    assert record == undisturbed[0]


def train_alone(
    store: FileStore,
    folders: tuple[Path, Path, Path],
    num_steps: int = 6,
    prepare: Callable[[Any], None] | None = None,
    **overrides: Any,
) -> str | None:
    teacher, student, corpus = map(str, folders)
    job = TrainingJob(
        store=store,
        prefix=PREFIX,
        localize=partial(localize, store),
        options=make_options(**overrides),
        teacher_uri=teacher,
        student_uri=student,
        corpus_uri=corpus,
        vocab_size=None,
        num_steps=num_steps,
        prepare=prepare,
    )
    return train_on_rank({"job": job})


def stop_at_first_checkpoint(
    store: FileStore,
    folders: tuple[Path, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    **overrides: Any,
) -> None:
    """Train until a checkpoint has just become complete."""

    def lose_power(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tasks.distill.checkpoints.delete_older", lose_power)
        train_alone(store, folders, **overrides)


def trained_weights(store: FileStore) -> dict[str, torch.Tensor]:
    files = read_json(store, "trained.json")["files"]
    return load_file(store.root / next(key for key in files if key.endswith(".safetensors")))


def losses(store: FileStore) -> list[float]:
    return [point["loss"] for point in read_json(store, "loss_curve.json")["points"]]


def test_accumulation_changes_nothing(
    process_group: None, folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    whole, parts = (FileStore(f"file://{tmp_path / name}") for name in ("whole", "parts"))
    batch = {"batch_blocks": 8, "checkpoint_steps": 100}
    assert train_alone(whole, folders, micro_batch_blocks=8, **batch) is None
    assert train_alone(parts, folders, micro_batch_blocks=2, **batch) is None
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-5)
    assert losses(whole)[-1] < losses(whole)[0]


@pytest.mark.parametrize("zero_stage", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_zero_stage_and_dtype_resumes_to_the_same_bytes(
    process_group: None,
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zero_stage: int,
    dtype: str,
) -> None:
    how = {"zero_stage": zero_stage, "dtype": dtype, "checkpoint_steps": 2, "batch_blocks": 16}
    whole, stopped = (FileStore(f"file://{tmp_path / name}") for name in ("whole", "stopped"))
    assert train_alone(whole, folders, **how) is None
    stop_at_first_checkpoint(stopped, folders, monkeypatch, **how)
    assert train_alone(stopped, folders, **how) is None
    weights = [trained_weights(store) for store in (whole, stopped)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert losses(whole) == losses(stopped)


@pytest.mark.parametrize(("zero_stage", "dtype"), [(0, "float32"), (2, "bfloat16")])
def test_training_through_a_rounding_resumes_and_leaves_latent_weights(
    process_group: None,
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zero_stage: int,
    dtype: str,
) -> None:
    options: dict[str, Any] = {"bits": 2, "group_size": 16}
    rounding = {"method": "absmax", "options": options, "dtype": "bfloat16"}
    students: list[Any] = []

    def prepare(student: Any) -> None:
        students.append(student)
        round_in_forward(rounding, student)

    how: dict[str, Any] = {"zero_stage": zero_stage, "dtype": dtype, "prepare": prepare}
    how |= {"checkpoint_steps": 2, "batch_blocks": 16}
    whole, stopped = (FileStore(f"file://{tmp_path / name}") for name in ("whole", "stopped"))
    assert train_alone(whole, folders, **how) is None
    stop_at_first_checkpoint(stopped, folders, monkeypatch, **how)
    assert train_alone(stopped, folders, **how) is None
    weights = [trained_weights(store) for store in (whole, stopped)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert losses(whole)[-1] < losses(whole)[0]
    exported = load_model(whole.root / read_json(whole, "trained.json")["folder"], dtype)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        unrounded = exported(input_ids=ids).logits
        for block in find_blocks(exported):
            for name in linear_weights(exported, block):
                latent = exported.get_parameter(name)
                done = absmax.round_weight(latent.float(), torch.bfloat16, **options)
                latent.copy_(done.dequantize())
        computed = students[0](input_ids=ids).logits
        assert torch.equal(exported(input_ids=ids).logits, computed)
    assert not torch.equal(unrounded, computed)


def test_a_loss_that_is_no_number_stops_with_a_remedy(
    process_group: None, folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    store = FileStore(f"file://{tmp_path}")
    failure = train_alone(
        store, folders, learning_rate=1e30, warmup=0.0, batch_blocks=16, checkpoint_steps=1
    )
    assert failure is not None
    assert "learning rate" in failure
    assert "checkpoint" in failure
    assert "try a smaller learning_rate" in failure
    assert not store.exists(f"{PREFIX}/trained.json")


def test_a_diverging_run_stops_and_keeps_its_best_checkpoint(
    process_group: None,
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.distill.divergence.DIVERGED_STEPS", 4)
    store = FileStore(f"file://{tmp_path}")
    how = {"learning_rate": 1.0, "clip_norm": 1e6, "warmup": 0.0}
    failure = train_alone(store, folders, 20, batch_blocks=16, checkpoint_steps=1, **how)
    assert failure is not None
    assert "above 3 times its best" in failure
    assert f"is kept at {store.uri}/{PREFIX}/checkpoints/00000001" in failure
    kept = sorted(
        Path(key).stem for key in store.list(PREFIX) if re.search(r"checkpoints/\d+\.json$", key)
    )
    assert kept[0] == "00000001"
    assert len(kept) == 3
    assert not store.exists(f"{PREFIX}/trained.json")


def test_a_damaged_checkpoint_is_refused(
    process_group: None,
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = FileStore(f"file://{tmp_path}")
    stop_at_first_checkpoint(store, folders, monkeypatch, batch_blocks=16, checkpoint_steps=2)
    marker = read_json(store, "checkpoints/00000002.json")
    weights = next(key for key in marker["files"] if key.endswith("model_states.pt"))
    store.write(weights, store.read(weights)[:-1] + b"?")
    with pytest.raises(CheckpointError, match="not what was written"):
        train_alone(store, folders, batch_blocks=16, checkpoint_steps=2)


def test_padded_vocabularies_share_the_tokenizer_s_tokens(
    make_llama: Callable[..., Path], tokenizer: Any
) -> None:
    plain, padded = make_llama(), make_llama(vocab_size=320)
    assert shared_vocab_size(plain, plain) is None
    assert shared_vocab_size(plain, padded) == shared_vocab_size(padded, plain) == len(tokenizer)


def test_other_tokenizers_are_refused(make_llama: Callable[..., Path]) -> None:
    teacher, student = make_llama(), make_llama()
    changed = json.loads((student / "tokenizer.json").read_text())
    vocab = changed["model"]["vocab"]
    first, second = list(vocab)[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (student / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="different tokenizers"):
        shared_vocab_size(teacher, student)
