"""The gate refuses what is worse, passes what is not, and says when the text cannot tell."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infra.storage import FileStore
from tasks.errors import QualityGateError
from tasks.evaluate.gate import (
    Evaluated,
    check_gate,
    check_nats,
    paired_difference,
    read_evaluated,
)
from tasks.gate_options import ChampionGate, Gate, TeacherGate
from tasks.quality_records import Metrics
from tasks.records import ModelRef

NUM_DOCUMENTS = 174


def evaluated(
    name: str, nats: NDArray[np.float64], tokens: NDArray[np.float64], num_bytes: int = 4_000_000
) -> Evaluated:
    nats_per_token = float(nats.sum() / tokens.sum())
    model = ModelRef(
        uri=f"store://{name}",
        digest=name,
        architecture="LlamaForCausalLM",
        num_parameters=1_000_000,
        num_bytes=num_bytes,
    )
    metrics = Metrics(
        nats_per_token=nats_per_token,
        perplexity=math.exp(min(nats_per_token, 50)),
        num_tokens=int(tokens.sum()),
        num_documents=tokens.size,
        tokens_per_s=1000.0,
        protocol="heldout.jsonl, window 256, float32",
        speed_protocol="prefill, batch 1",
        documents_uri=f"store://{name}.json",
        digest=name,
    )
    return Evaluated(model, metrics, nats, tokens)


def heldout(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats and tokens of documents whose length and difficulty vary as those of real text do."""
    rng = np.random.default_rng(seed)
    tokens = np.clip(rng.lognormal(4.8, 0.6, NUM_DOCUMENTS).astype(int), 16, 1024).astype(float)
    return tokens * rng.normal(3.4, 0.6, NUM_DOCUMENTS).clip(0.5), tokens


@pytest.mark.parametrize(("factor", "passes"), [(1.02, False), (1.0, True)])
def test_two_percent_worse_is_refused_and_an_equal_model_passes(
    factor: float, passes: bool
) -> None:
    decided = 0
    for seed in range(20):
        nats, tokens = heldout(seed)
        rng = np.random.default_rng([seed, 1])
        noise = rng.normal(0, 0.02, NUM_DOCUMENTS)  # per document, a fifth of quantization's
        limit = 0.01 * nats.sum() / tokens.sum()
        teacher = evaluated(f"teacher{seed}", nats, tokens)
        candidate = evaluated(f"candidate{seed}", nats * (factor + noise), tokens)
        gate = Gate(teacher=TeacherGate(max_nats_increase=limit))
        decided += check_gate(gate, candidate, teacher, None).passed == passes
    assert decided >= 19


def test_a_small_case_by_hand() -> None:
    """Two documents of ten tokens, one unchanged, one 2 nats worse: resamples 0, 0.1 and 0.2."""
    tokens = np.array([10.0, 10.0])
    reference = evaluated("a", np.array([20.0, 30.0]), tokens)
    difference = paired_difference(evaluated("b", np.array([20.0, 32.0]), tokens), reference)
    assert difference.figure == pytest.approx(0.1)
    assert (difference.lower, difference.upper) == pytest.approx((0.0, 0.2))


def test_long_documents_weigh_more() -> None:
    tokens = np.array([10.0, 90.0])
    reference = evaluated("a", np.array([10.0, 90.0]), tokens)
    candidate = evaluated("b", np.array([20.0, 90.0]), tokens)
    assert paired_difference(candidate, reference).figure == pytest.approx(0.1)


def test_documents_without_scored_tokens_say_nothing() -> None:
    nats, tokens = heldout(8)
    noisy = nats + np.random.default_rng(9).normal(0, 2, NUM_DOCUMENTS)
    difference = paired_difference(evaluated("b", noisy, tokens), evaluated("a", nats, tokens))
    more = np.zeros(NUM_DOCUMENTS)
    again = paired_difference(
        evaluated("b", np.append(noisy, more), np.append(tokens, more)),
        evaluated("a", np.append(nats, more), np.append(tokens, more)),
    )
    assert again == difference
    alone = evaluated("c", np.array([3.0, 0.0]), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="at least 2 documents with something to score, got 1"):
        paired_difference(alone, alone)


def test_the_interval_is_that_of_the_normal_theory_for_many_documents() -> None:
    rng = np.random.default_rng(0)
    tokens = np.full(4000, 50.0)
    noise = rng.normal(0, 1.0, 4000)
    reference = evaluated("a", tokens * 3, tokens)
    difference = paired_difference(evaluated("b", tokens * 3 + noise, tokens), reference)
    half_width = 1.645 * noise.std() / math.sqrt(4000) / 50
    assert difference.upper - difference.figure == pytest.approx(half_width, rel=0.03)
    assert difference.figure - difference.lower == pytest.approx(half_width, rel=0.03)


def test_a_few_documents_are_not_trusted_more_than_students_t() -> None:
    """The upper end covers the truth as often as it says, with ten documents only."""
    covered = 0
    for seed in range(400):
        noise = np.random.default_rng(seed).normal(0, 1, 10)
        tokens = np.ones(10)
        candidate = evaluated(f"b{seed}", tokens + noise, tokens)
        covered += paired_difference(candidate, evaluated("a", tokens, tokens)).upper >= 0
    assert covered / 400 >= 0.93


def test_identical_models_differ_by_exactly_nothing_and_pass_at_a_limit_of_zero() -> None:
    nats, tokens = heldout(0)
    check = check_nats("x", 0.0, evaluated("a", nats, tokens), evaluated("b", nats, tokens))
    assert check.passed
    assert check.difference is not None
    assert (check.figure, check.difference.lower, check.difference.upper) == (0.0, 0.0, 0.0)


def test_too_few_items_are_refused_with_the_number_needed() -> None:
    nats, tokens = heldout(3)
    noise = np.random.default_rng(5).normal(0, 0.1, NUM_DOCUMENTS)
    noise -= (nats * noise).sum() / nats.sum()  # no difference at all, on average
    candidate = evaluated("b", nats * (1 + noise), tokens)
    reference = evaluated("a", nats, tokens)
    difference = paired_difference(candidate, reference)
    limit = difference.upper / 3
    check = check_nats("x", limit, candidate, reference)
    assert not check.passed
    assert check.reason is not None
    assert check.reason.startswith("too few items: about 1,5")  # 174 x 3^2 = 1,566


def test_what_is_surely_worse_is_not_blamed_on_the_text() -> None:
    nats, tokens = heldout(4)
    noise = np.random.default_rng(6).normal(0, 0.1, NUM_DOCUMENTS)
    candidate = evaluated("b", nats * (1.5 + noise), tokens)
    check = check_nats("x", 0.01, candidate, evaluated("a", nats, tokens))
    assert check.reason is not None
    assert "too few" not in check.reason
    assert "the limit is 0.01" in check.reason


def test_a_better_model_passes_however_wide_its_interval() -> None:
    nats, tokens = heldout(7)
    noise = np.random.default_rng(8).normal(0, 0.1, NUM_DOCUMENTS)
    candidate = evaluated("b", nats * (0.8 + noise), tokens)
    check = check_nats("x", 0.0, candidate, evaluated("a", nats, tokens))
    assert check.passed
    assert check.difference is not None
    assert check.difference.upper > check.difference.figure


def test_bytes_count_four_per_teacher_parameter() -> None:
    nats, tokens = heldout(1)
    gate = Gate(teacher=TeacherGate(max_bytes_ratio=0.3))
    teacher = evaluated("a", nats, tokens, num_bytes=2_000_000)  # 16-bit on disk: not what counts
    for num_bytes, passes in [(1_200_000, True), (1_200_001, False)]:
        report = check_gate(gate, evaluated("b", nats, tokens, num_bytes), teacher, None)
        assert report.passed == passes
        assert report.checks[0].figure == pytest.approx(0.3, abs=1e-6)


def test_the_champion_is_held_against_or_its_absence_is_said() -> None:
    nats, tokens = heldout(2)
    gate = Gate(champion=ChampionGate(max_nats_increase=0.01))
    teacher, champion = evaluated("t", nats * 0.5, tokens), evaluated("c", nats, tokens)
    worse = evaluated("b", nats * 1.05, tokens)
    first = check_gate(gate, worse, teacher, None)
    assert first.passed
    assert any("No champion" in note for note in first.notes)
    second = check_gate(gate, worse, teacher, champion)
    assert not second.passed
    assert (second.checks[0].against, second.notes) == ("c", [])


def test_no_limits_pass_and_are_said() -> None:
    nats, tokens = heldout(2)
    same = evaluated("a", nats, tokens)
    report = check_gate(Gate(), same, same, None)
    assert report.passed
    assert any("no limit" in note for note in report.notes)


def test_another_tokenizer_is_never_compared_in_silence() -> None:
    nats, tokens = heldout(2)
    with pytest.raises(ValueError, match="same tokens of the same documents"):
        paired_difference(evaluated("a", nats, tokens), evaluated("b", nats, tokens + 1))


def test_evidence_is_read_from_the_store_and_must_be_finite(tmp_path) -> None:  # type: ignore[no-untyped-def]
    store = FileStore(f"file://{tmp_path}")
    nats, tokens = heldout(2)
    made = evaluated("a", nats, tokens)
    store.write("a.json", json.dumps({"nats": list(nats), "tokens": list(tokens)}).encode())
    read = read_evaluated(store, made.model, made.metrics)
    assert np.array_equal(read.nats, nats)
    assert np.array_equal(read.tokens, tokens)
    nats[3] = math.nan
    store.write("a.json", json.dumps({"nats": list(nats), "tokens": list(tokens)}).encode())
    with pytest.raises(QualityGateError, match="not a finite number on 1 of 174"):
        read_evaluated(store, made.model, made.metrics)


@settings(max_examples=15, deadline=None)
@given(
    shift=st.floats(-0.5, 0.5),
    seed=st.integers(0, 1000),
    num_documents=st.integers(2, 60),
)
def test_the_interval_holds_the_figure_moves_with_it_and_repeats(
    shift: float, seed: int, num_documents: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 200, num_documents).astype(float)
    nats = tokens * rng.uniform(1, 5, num_documents)
    noisy = nats + rng.normal(0, 2, num_documents)
    reference = evaluated("a", nats, tokens)
    first = paired_difference(evaluated("b", noisy, tokens), reference)
    moved = paired_difference(evaluated("b", noisy + shift * tokens, tokens), reference)
    assert first.lower <= first.figure <= first.upper
    assert paired_difference(evaluated("b", noisy, tokens), reference) == first
    for before, after in zip(first.model_dump().values(), moved.model_dump().values(), strict=True):
        if isinstance(before, float):
            assert after == pytest.approx(before + shift, abs=1e-9)
