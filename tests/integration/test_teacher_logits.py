"""Teacher logits stored by two Ray workers, one of which is killed; a student that reads them."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infra.ray_cluster import RayExecutor
from infra.storage import FileStore, localize
from tasks.distill.job import TrainingJob
from tasks.distill.teacher_logits import storing
from tasks.distill.teacher_logits.shard import Origin, digest_vocabulary
from tasks.distill.teacher_logits.storing import store_teacher_logits
from tasks.distill.training import train_on_rank
from tasks.models.checkpoint import describe_model, load_tokenizer
from tasks.records import CorpusRef, ModelRef, TeacherLogitsRef
from tasks.stage_space import StageSpace
from tests.integration.distill_driver import PREFIX, make_options
from tests.unit.stage_space import make_space

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

NUM_BLOCKS, BLOCK_TOKENS, NUM_SHARDS = 96, 32, 6
OPTIONS = {"k": None, "device": "cpu", "trust_remote_code": False}
ENCODE_BLOCKS = storing.encode_blocks


@dataclass(frozen=True)
class Watched:
    """Encodes a shard as the stage does; notes which, and dies once with a shard in hand."""

    begun: Path
    dies_at: int

    def __call__(self, teacher: Any, begin: int) -> bytes:
        shard = ENCODE_BLOCKS(teacher, begin)
        with self.begun.open("a") as file:
            file.write(f"{begin}\n")
        if len(self.begun.read_text().splitlines()) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return shard


@pytest.fixture(scope="module")
def records(
    make_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelRef, ModelRef, CorpusRef]:
    """Teacher, student and corpus."""
    shape = {"hidden_size": 64, "head_dim": 16}
    folders = [make_llama(seed=seed, **shape) for seed in (1, 2)]
    corpus = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, (NUM_BLOCKS, BLOCK_TOKENS), generator=generator).int()
    blocks = {"ids": ids, "loss_mask": torch.ones_like(ids, dtype=torch.uint8)}
    save_file(blocks, corpus / "blocks.safetensors")
    teacher, student = (describe_model(folder, str(folder)) for folder in folders)
    return (
        teacher,
        student,
        CorpusRef(
            uri=str(corpus),
            digest="corpus",
            num_blocks=NUM_BLOCKS,
            block_tokens=BLOCK_TOKENS,
            num_documents=1,
            dropped={},
            sources={},
        ),
    )


def store_on(space: StageSpace, records: tuple[ModelRef, ModelRef, CorpusRef]) -> TeacherLogitsRef:
    teacher, _, corpus = records
    ref = store_teacher_logits(space, OPTIONS, teacher=teacher, corpus=corpus)
    return ref.model_copy(update={"uri": str(space.out)})


def test_a_killed_worker_costs_one_shard(
    records: tuple[ModelRef, ModelRef, CorpusRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_tokens = NUM_BLOCKS * BLOCK_TOKENS // NUM_SHARDS
    monkeypatch.setattr(storing, "SHARD_TOKENS", shard_tokens)
    whole = store_on(make_space(tmp_path / "whole", tmp_path / "a"), records)
    assert whole.num_shards == NUM_SHARDS

    begun = tmp_path / "begun"
    monkeypatch.setattr(storing, "encode_blocks", Watched(begun, dies_at=3))
    executor = RayExecutor("local", 2, 0, 1, tmp_path)
    try:
        space = make_space(tmp_path / "killed", tmp_path / "b", executor=executor)
        resumed = store_on(space, records)
    finally:
        executor.close()
    assert resumed.digest == whole.digest
    assert len(begun.read_text().splitlines()) == NUM_SHARDS + 1


@pytest.mark.usefixtures("process_group")
def test_a_student_learns_from_the_store(
    records: tuple[ModelRef, ModelRef, CorpusRef], tmp_path: Path
) -> None:
    """In a process group of one; the teacher's folder is not among what the job names."""
    teacher, student, corpus = records
    stored = store_on(make_space(tmp_path / "store", tmp_path / "a"), records)
    online = train_alone(tmp_path / "online", student, corpus, teacher_uri=teacher.uri)
    tokenizer = digest_vocabulary(load_tokenizer(Path(student.uri)))
    from_store = train_alone(
        tmp_path / "stored",
        student,
        corpus,
        teacher_uri=None,
        vocab_size=stored.vocab_size,
        teacher_logits_uri=stored.uri,
        teacher_logits_origin=Origin(teacher.digest, tokenizer, corpus.digest),
    )
    assert from_store[-1] < from_store[0]
    # The bucket of all other tokens hides a part of the divergence, never adds to it.
    assert all(part < whole for part, whole in zip(from_store, online, strict=True))


def train_alone(place: Path, student: ModelRef, corpus: CorpusRef, **told: Any) -> list[float]:
    """Train for twenty steps; return the losses."""
    store = FileStore(f"file://{place}")
    job = TrainingJob(
        store=store,
        prefix=PREFIX,
        localize=partial(localize, store),
        options=make_options(
            losses=[{"name": "forward_kl", "options": {"temperature": 1.0}}],
            batch_blocks=16,
            micro_batch_blocks=8,
        ),
        student_uri=student.uri,
        corpus_uri=corpus.uri,
        num_steps=20,
        **({"vocab_size": None} | told),
    )
    assert train_on_rank({"job": job}) is None
    points = json.loads(store.read(f"{PREFIX}/loss_curve.json"))["points"]
    return [point["loss"] for point in points]
