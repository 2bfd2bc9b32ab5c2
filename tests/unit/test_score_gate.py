"""The gate on task scores: what fell is refused, what is equal passes, few items are not enough."""

import math
from typing import Any

import numpy as np
import pytest

from tasks.evaluate.gate import Evaluated, check_gate
from tasks.evaluate.items import Items, score_items
from tasks.evaluate.score_drop import paired_drop
from tasks.gate_options import ChampionGate, Gate, TeacherGate
from tasks.quality_records import Metrics, TaskScore
from tasks.records import ModelRef
from tasks.report.wording import describe_check, title_check

NUM_ITEMS = 2000
LIMIT = 0.02


def evaluated(name: str, **items: Items) -> Evaluated:
    model = ModelRef(
        uri=f"store://{name}",
        digest=name,
        architecture="BertForSequenceClassification",
        num_parameters=1000,
        num_bytes=4000,
    )
    tasks = {}
    for task, said in items.items():
        scores = score_items(said)
        mean = sum(scores.values()) / len(scores)
        tasks[task] = TaskScore(
            score=mean, scores=scores, num_items=len(said.gold), protocol="p", items_uri="u"
        )
    metrics = Metrics(
        nats_per_token=1.0,
        perplexity=math.e,
        num_tokens=2,
        num_documents=2,
        tokens_per_s=1.0,
        protocol="nats/row",
        speed_protocol="s",
        documents_uri="u",
        digest=name,
        tasks=tasks,
    )
    return Evaluated(model, metrics, np.ones(2), np.ones(2), items)


def answers(seed: int, worse: float, metrics: list[str]) -> tuple[Items, Items]:
    """A teacher that is right nine times in ten, and a student that disagrees on 4% of items, and
    is wrong on a share `worse` of them besides."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, NUM_ITEMS).astype(float)
    before = np.where(rng.random(NUM_ITEMS) < 0.9, gold, 1 - gold)
    after = before.copy()
    changed = rng.permutation(NUM_ITEMS)[:80]
    # As many that were wrong become right as the other way round.
    wrong = np.flatnonzero(before != gold)[:40]
    right = np.flatnonzero(before == gold)
    after[wrong] = gold[wrong]
    lost = rng.permutation(right)[: 40 + round(worse * NUM_ITEMS)]
    after[lost] = 1 - gold[lost]
    assert changed.size == 80
    return (
        Items(metrics, "items", gold.tolist(), before.tolist()),
        Items(metrics, "items", gold.tolist(), after.tolist()),
    )


@pytest.mark.parametrize("metrics", [["accuracy"], ["f1", "accuracy"], ["matthews"]])
@pytest.mark.parametrize(("worse", "passes"), [(0.06, False), (0.0, True)])
def test_a_worse_model_is_refused_and_an_equal_one_passes(
    metrics: list[str], worse: float, passes: bool
) -> None:
    decided = 0
    for seed in range(20):
        before, after = answers(seed, worse, metrics)
        limit = LIMIT * (2 if metrics == ["matthews"] else 1)
        gate = Gate(teacher=TeacherGate(max_score_drop={"sst2": limit}))
        teacher = evaluated(f"teacher{seed}", sst2=before)
        candidate = evaluated(f"candidate{seed}", sst2=after)
        report = check_gate(gate, candidate, teacher, None)
        decided += report.passed == passes
        assert report.checks[0].name == "teacher.max_score_drop.sst2"
    assert decided >= 19


def test_the_interval_of_an_accuracy_is_bonetts_and_prices() -> None:
    before, after = answers(0, 0.01, ["accuracy"])
    gold = np.array(before.gold)
    right = [np.array(items.predicted) == gold for items in (before, after)]
    lost, won = (right[0] & ~right[1]).sum() + 1, (right[1] & ~right[0]).sum() + 1
    n = NUM_ITEMS + 2
    centre, spread = (lost - won) / n, math.sqrt((lost + won - (lost - won) ** 2 / n) / n**2)
    found = paired_drop(after, before, "a", "b")
    assert found.figure == pytest.approx(0.01)
    assert found.upper == pytest.approx(centre + 1.645 * spread, abs=0.0006)
    assert found.lower == pytest.approx(centre - 1.645 * spread, abs=0.0006)


def test_the_share_of_intervals_that_hold_the_truth_is_as_stated_where_few_items_differ() -> None:
    """Two models that disagree on one item in fifty, evenly, asked about 60 items."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        before = np.ones(60)
        after = before.copy()
        drawn = rng.random(60)
        after[drawn < 0.01] = 0
        before[drawn > 0.99] = 0
        items = [Items(["accuracy"], "i", [1.0] * 60, said.tolist()) for said in (after, before)]
        covered += paired_drop(*items, f"a{seed}", "b").upper >= 0
    assert covered >= 93


def test_agreement_on_a_handful_of_items_proves_nothing() -> None:
    same = Items(["accuracy"], "items", [1.0, 0.0] * 10, [1.0, 0.0] * 10)
    gate = Gate(teacher=TeacherGate(max_score_drop={"rte": 0.01}))
    report = check_gate(gate, evaluated("a", rte=same), evaluated("b", rte=same), None)
    (check,) = report.checks
    assert (report.passed, check.figure) == (False, 0.0)
    assert check.reason is not None and check.reason.startswith("too few items: about ")
    itself = check_gate(gate, evaluated("a", rte=same), evaluated("a", rte=same), None)
    assert itself.passed


def test_a_regressions_scores_are_paired_too() -> None:
    rng = np.random.default_rng(0)
    gold = rng.random(400) * 5
    said = gold + rng.normal(0, 1, 400)
    worse = gold + rng.normal(0, 3, 400)
    before, after = (
        Items(["pearson", "spearman"], "i", gold.tolist(), s.tolist()) for s in (said, worse)
    )
    found = paired_drop(after, before, "a", "b")
    assert found.figure == pytest.approx(
        sum(score_items(before).values()) / 2 - sum(score_items(after).values()) / 2
    )
    assert 0 < found.lower < found.figure < found.upper


def test_no_earlier_task_may_fall() -> None:
    before, after = answers(1, 0.06, ["accuracy"])
    _, equal = answers(1, 0.0, ["accuracy"])
    gate = Gate(champion=ChampionGate(must_not_fall=["old", "new"]))
    teacher = evaluated("t", old=before, new=before)
    champion = evaluated("c", old=before, new=before)
    candidate = evaluated("x", old=after, new=equal)
    report = check_gate(gate, candidate, teacher, champion)
    assert [(c.name, c.passed) for c in report.checks] == [
        ("champion.must_not_fall.old", False),
        ("champion.must_not_fall.new", True),
    ]
    assert "below the champion's" in (report.checks[0].reason or "")
    assert title_check(report.checks[0]) == "old must not fall below the champion"
    assert "lower end" in describe_check(report.checks[1])
    first = check_gate(gate, candidate, teacher, None)
    assert first.passed and "champion.must_not_fall was skipped" in first.notes[0]


def test_other_items_are_never_compared_in_silence() -> None:
    before, after = answers(0, 0.0, ["accuracy"])
    with pytest.raises(ValueError, match="same items of a task"):
        paired_drop(after._replace(digest="other"), before, "a", "b")
    one: dict[str, Any] = {"gold": [1.0], "predicted": [1.0]}
    with pytest.raises(ValueError, match="at least 2 items, got 1"):
        paired_drop(after._replace(**one), before._replace(**one), "a", "b")
