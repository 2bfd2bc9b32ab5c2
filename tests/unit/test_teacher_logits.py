"""Stored teacher logits: bits, what is kept, what comes back, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from flows.planning import make_plan
from infra.storage import open_store
from kernels.chunked_kd.naive import StoredTeacher, Term, losses
from tasks.distill.blocks import load_blocks, next_tokens
from tasks.distill.distillation import distill
from tasks.distill.teacher_logits import storing
from tasks.distill.teacher_logits.bits import (
    pack_fields,
    pack_unary,
    unpack_fields,
    unpack_unary,
)
from tasks.distill.teacher_logits.encoding import (
    MIN_PROBABILITY,
    TAIL_STEPS,
    Encoding,
    choose_encoding,
    pack,
    select_entries,
    unpack,
)
from tasks.distill.teacher_logits.reader import open_teacher_logits, to_stored_teacher
from tasks.distill.teacher_logits.shard import Origin, Shard, digest_vocabulary, shard_name
from tasks.distill.teacher_logits.storing import store_teacher_logits
from tasks.distill_options import DistillOptions
from tasks.errors import CheckpointError
from tasks.inputs import find_inputs
from tasks.models.checkpoint import describe_model, load_model, load_tokenizer
from tasks.recipe_file import load_recipe
from tasks.records import CorpusRef, ModelRef, TeacherLogitsRef
from tasks.stage_space import StageSpace
from tests.unit.stage_space import make_space

NUM_BLOCKS, BLOCK_TOKENS = 7, 16
OPTIONS = {"k": None, "device": "cpu", "trust_remote_code": False}


@given(st.lists(st.tuples(st.integers(0, 2**25 - 1), st.integers(0, 25))))
@settings(max_examples=50, deadline=None)
def test_fields_of_any_width_come_back(fields: list[tuple[int, int]]) -> None:
    widths = np.array([width for _, width in fields], dtype=np.int64)
    values = np.array([value % 2**width for value, width in fields], dtype=np.int64)
    stream = pack_fields(values, widths)
    assert len(stream) == -(-int(widths.sum()) // 8)
    assert np.array_equal(unpack_fields(stream, widths), values)


@given(st.lists(st.integers(0, 40)))
@settings(max_examples=50, deadline=None)
def test_unary_numbers_come_back(numbers: list[int]) -> None:
    stream = pack_unary(np.array(numbers, dtype=np.int64))
    assert unpack_unary(stream).tolist() == numbers


def test_the_bits_are_those_of_the_documentation() -> None:
    """Tokens 5 and 30 of 64, of probability .75 and .1875: a mean gap of 32 has codes of order 3.

    5 + 8 = 0b1101: class 0, three bits 101. 24 + 8 = 0b100000: class 2, five bits 00000.
    """
    encoding = choose_encoding(64, None)._replace(min_probability=0.1)
    probs = torch.full((1, 64), 0.0625 / 62)
    probs[0, 5], probs[0, 30] = 0.75, 0.1875
    entries = select_entries(probs.log(), torch.ones(1), encoding)
    assert entries.tails.tolist() == [TAIL_STEPS // 16]
    assert entries.deltas.tolist() == [0, 7]  # ln 4 = 1.386 = 7.2 steps of ln(384) / 31
    packed = pack(entries, encoding)
    assert packed.classes.tolist() == [0b1001]
    fields = 0b101 | 0 << 3 | 0b00000 << 8 | 7 << 13
    assert packed.fields.tolist() == list(fields.to_bytes(3, "little"))


@given(st.integers(1, 300), st.integers(0, 2**31), st.sampled_from([None, 1, 20, 255]))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_comes_back(vocab_size: int, seed: int, k: int | None) -> None:
    encoding = choose_encoding(vocab_size, k)
    entries = select_entries(*draw(9, vocab_size, seed), encoding)
    back = unpack(pack(entries, encoding), entries.counts, entries.tails, encoding)
    for before, after in zip(entries, back, strict=True):
        assert np.array_equal(before, after)


def draw(
    num_positions: int, vocab_size: int, seed: int = 0, sharpness: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, V], and which positions are learned [N]."""
    generator = torch.Generator().manual_seed(seed)
    logits_NV = sharpness * torch.randn(num_positions, vocab_size, generator=generator)
    return logits_NV, torch.rand(num_positions, generator=generator) < 0.8


def store(logits_NV: torch.Tensor, encoding: Encoding) -> StoredTeacher:
    entries = select_entries(logits_NV, torch.ones(len(logits_NV)), encoding)
    return to_stored_teacher(entries, encoding)


def test_the_prefix_is_the_smallest_that_holds_the_mass() -> None:
    logits_NV, _ = draw(200, 300)
    encoding = choose_encoding(300, None)
    for q, ids in zip(logits_NV.softmax(1), store(logits_NV, encoding).ids, strict=True):
        kept, rest = q[ids[ids >= 0]], torch.ones(300, dtype=torch.bool)
        rest[ids[ids >= 0]] = False
        assert kept.min() >= q[rest].max()
        assert kept.min() >= MIN_PROBABILITY
        assert kept.sum() - kept.min() < 0.995
        stopped = kept.sum() >= 0.995 or len(kept) == 64 or q[rest].max() < MIN_PROBABILITY
        assert stopped
        assert (ids[: len(kept)].diff() > 0).all()


@pytest.mark.parametrize("k", [None, 64])
def test_probabilities_come_back_within_half_a_step(k: int | None) -> None:
    logits_NV, _ = draw(200, 300)
    encoding = choose_encoding(300, k)
    stored = store(logits_NV, encoding)
    kept_NK = stored.ids >= 0
    mass_N = stored.log_probs.exp().sum(1) + stored.log_tail.exp()
    assert torch.allclose(mass_N, torch.ones(200), atol=1e-5)
    exact_NK = logits_NV.log_softmax(1).gather(1, stored.ids.clamp(min=0))
    reach = 2**encoding.delta_bits * encoding.delta_step
    near_NK = kept_NK & (exact_NK > exact_NK.max(1, keepdim=True).values - reach)
    error_NK = (stored.log_probs - exact_NK)[near_NK].abs()
    assert error_NK.max() <= encoding.delta_step  # half a step, and half of the largest one's
    tails_N = 1 - (exact_NK.exp() * kept_NK).sum(1)
    assert torch.allclose(stored.log_tail.exp(), tails_N, atol=2 / TAIL_STEPS)


def test_twenty_probabilities_keep_their_sum_and_tail() -> None:
    """The twenty of a known teacher add up to .77724, so that .22276 is the tail."""
    probs = torch.full((1, 1000), 0.22276 / 980)
    probs[0, :20] = torch.linspace(1, 5, 20) / torch.linspace(1, 5, 20).sum() * 0.77724
    stored = store(probs.log(), choose_encoding(1000, 20))
    assert stored.ids.tolist() == [list(range(20))]
    assert float(stored.log_probs.exp().sum()) == pytest.approx(0.77724, abs=1e-5)
    assert float(stored.log_tail.exp()) == pytest.approx(0.22276, abs=1e-5)


def test_the_divergence_from_the_store_is_at_most_the_whole() -> None:
    logits_NV, _ = draw(100, 300)
    student_NV, _ = draw(100, 300, seed=1, sharpness=1.0)
    term = [Term("forward_kl")]
    labels = torch.zeros(100, dtype=torch.long)
    whole = losses(student_NV, logits_NV, labels, term)
    fine = choose_encoding(300, None)._replace(delta_bits=18, delta_step=1e-4)
    part = losses(student_NV, store(logits_NV, fine), labels, term)
    assert (part <= whole + 1e-3).all()
    coarse = losses(student_NV, store(logits_NV, choose_encoding(300, None)), labels, term)
    assert torch.allclose(coarse, part, atol=0.05)


@pytest.fixture(scope="module")
def folders(
    make_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Teacher, with a padded vocabulary, and corpus."""
    corpus = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, (NUM_BLOCKS, BLOCK_TOKENS), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.uint8)
    mask[::3, :5] = 0
    save_file({"ids": ids.int(), "loss_mask": mask}, corpus / "blocks.safetensors")
    return make_llama(seed=1, vocab_size=320), corpus


def corpus_ref(corpus: Path) -> CorpusRef:
    return CorpusRef(
        uri=str(corpus),
        digest="corpus",
        num_blocks=NUM_BLOCKS,
        block_tokens=BLOCK_TOKENS,
        num_documents=1,
        dropped={},
        sources={},
    )


def run_stage(
    folders: tuple[Path, Path], place: Path, **options: Any
) -> tuple[ModelRef, TeacherLogitsRef, StageSpace]:
    space = make_space(place / "store", place / "scratch")
    teacher = describe_model(folders[0], str(folders[0]))
    ref = store_teacher_logits(
        space, OPTIONS | options, teacher=teacher, corpus=corpus_ref(folders[1])
    )
    return teacher, ref, space


@pytest.fixture(scope="module")
def stored(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelRef, TeacherLogitsRef, StageSpace]:
    """Of the whole corpus, for many tests to read."""
    return run_stage(folders, tmp_path_factory.mktemp("stored"))


@pytest.fixture
def three_blocks_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "SHARD_TOKENS", 3 * BLOCK_TOKENS)


def origin_of(teacher: ModelRef) -> Origin:
    return Origin(teacher.digest, digest_vocabulary(load_tokenizer(Path(teacher.uri))), "corpus")


def test_any_blocks_are_read_in_any_order(
    three_blocks_a_shard: None, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    teacher, ref, space = run_stage(folders, tmp_path, k=255)
    assert (ref.num_shards, ref.vocab_size) == (3, 300)
    assert ref.num_bytes == sum(path.stat().st_size for path in space.out.iterdir())
    logits = open_teacher_logits(space.out, origin_of(teacher))
    rows = torch.tensor([6, 0, 3, 0])
    stored = logits.read(rows)
    assert stored.ids.shape == stored.log_probs.shape == (4 * BLOCK_TOKENS, 255)
    blocks = load_blocks(folders[1])
    ids = blocks.ids[rows].long()
    assert blocks.loss_mask is not None
    _, learned = next_tokens(ids, blocks.loss_mask[rows])
    with torch.no_grad():
        wanted = load_model(folders[0])(input_ids=ids).logits[..., :300].log_softmax(-1)
    wanted = wanted.flatten(0, 1)[learned.flatten().bool()]
    kept = StoredTeacher(*(part[learned.flatten().bool()] for part in stored))
    exact = wanted.gather(1, kept.ids.clamp(min=0))
    near = exact > exact.max(1, keepdim=True).values - 10
    assert (kept.log_probs - exact)[near].abs().max() <= 1 / 6
    unlearned = StoredTeacher(*(part[~learned.flatten().bool()] for part in stored))
    assert ((unlearned.ids >= 0).sum(1) == 1).all()
    assert unlearned.log_probs[:, 0].isfinite().all()


def test_the_same_bytes_whatever_was_killed(
    three_blocks_a_shard: None,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []

    def killed(teacher: Any, begin: int) -> bytes:
        begun.append(begin)
        if begun == [0, 3]:
            raise KeyboardInterrupt
        return encode(teacher, begin)

    encode = storing.encode_blocks
    _, whole, _ = run_stage(folders, tmp_path / "whole")
    monkeypatch.setattr(storing, "encode_blocks", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(folders, tmp_path / "killed")
    _, again, _ = run_stage(folders, tmp_path / "killed")
    assert begun == [0, 3, 3, 6]
    assert again == whole


@pytest.mark.parametrize("what", ["teacher", "tokenizer", "corpus"])
def test_a_stale_store_is_refused(
    what: str, stored: tuple[ModelRef, TeacherLogitsRef, StageSpace]
) -> None:
    teacher, _, space = stored
    other = origin_of(teacher)._replace(**{what: "other"})
    with pytest.raises(CheckpointError, match=f"of another {what}: expected other, got"):
        open_teacher_logits(space.out, other)


def test_a_damaged_shard_and_one_of_another_version_are_refused(
    stored: tuple[ModelRef, TeacherLogitsRef, StageSpace], tmp_path: Path
) -> None:
    teacher, _, space = stored
    data = (space.out / shard_name(0)).read_bytes()
    path = tmp_path / shard_name(0)
    path.write_bytes(data)
    header = Shard(path).header.model_dump_json()
    assert json.loads(header)["version"] == 1
    for bad in (data[:-1], data.replace(rb"\"version\":1", rb"\"version\":9"), b""):
        assert bad != data
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="the next run stores them again"):
            open_teacher_logits(tmp_path, origin_of(teacher))
    path.unlink()
    with pytest.raises(CheckpointError, match=shard_name(0)):
        open_teacher_logits(tmp_path, origin_of(teacher))


@pytest.mark.parametrize("name", ["logit_mse", "hidden_mse", "attention_maps", "my.losses:one"])
def test_losses_that_look_at_more_than_probabilities_are_refused(name: str) -> None:
    both = [{"name": "forward_kl"}, {"name": name}]
    DistillOptions(losses=both, num_tokens=1)
    with pytest.raises(ValueError, match=f"got the losses .*{name}.* teacher: online"):
        DistillOptions(losses=both, num_tokens=1, teacher="stored")


def test_a_store_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a loss that looks at the teacher"):
        DistillOptions(losses=[{"name": "cross_entropy"}], num_tokens=1, teacher="stored")
    with pytest.raises(ValueError, match="expected teacher: stored beside it"):
        DistillOptions(losses=[{"name": "forward_kl"}], num_tokens=1, stored_k=64)


def test_the_ranks_are_told_of_the_store_and_not_of_the_teacher(
    folders: tuple[Path, Path],
    stored: tuple[ModelRef, TeacherLogitsRef, StageSpace],
    make_llama: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, ref, space = stored
    jobs: list[Any] = []

    def stop(space: StageSpace, job: Any) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.distill.distillation.run_training", stop)
    student = make_llama(seed=2)
    options = DistillOptions(
        losses=[{"name": "forward_kl"}], num_tokens=64, teacher="stored"
    ).model_dump()
    with pytest.raises(KeyboardInterrupt):
        distill(
            space,
            options | {"world_size": 1, "device": "cpu"},
            teacher=teacher,
            student=describe_model(student, str(student)),
            corpus=corpus_ref(folders[1]),
            teacher_logits=ref,
        )
    (job,) = jobs
    assert job.teacher_uri is None
    assert job.teacher_logits_uri == ref.uri
    assert job.teacher_logits_origin == origin_of(teacher)
    assert job.vocab_size == 300


def test_a_plan_stores_the_teacher_before_it_trains(recipe_file: Path, tmp_path: Path) -> None:
    text = recipe_file.read_text().replace("name: cross_entropy", "name: jsd")
    recipe_file.write_text(text.replace("- distill:\n", "- distill:\n      teacher: stored\n"))
    recipe, store = load_recipe(recipe_file, []), open_store(f"file://{tmp_path}/store")
    titles = [stage.title for stage in make_plan(recipe, find_inputs(recipe, store), store).stages]
    place = titles.index("2 distill")
    assert titles[place - 1] == "teacher logits for 2 distill"
    assert titles[place + 1] == "2 from scratch"
    assert sum("teacher logits" in title for title in titles) == 1
