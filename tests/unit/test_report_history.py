"""Earlier nights: what changed since the last, the front over all, and when a night has paid."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.storage import FileStore
from tasks.quality_records import GateReport, Metrics
from tasks.records import ModelRef
from tasks.report.change_wording import summarise
from tasks.report.changes import find_changes, list_differences
from tasks.report.earlier_nights import list_exports, read_earlier
from tasks.report.pareto import find_front, trace_front
from tasks.report.payback import find_payback
from tasks.report.svg import Box
from tasks.run_records import EvaluatedModel, ExportResult, RunRecord, StageResult
from tests.unit.report_factory import make_changes, make_cost, make_report

RECIPE: dict[str, Any] = {"name": "docs-lm", "seed": 0, "steps": [{"distill": {"num_tokens": 300}}]}


def make_model(store: FileStore, title: str, nats: float, size: int, text: str) -> EvaluatedModel:
    digest = f"{title}{nats}{size}".encode().hex().ljust(64, "0")[:64]
    uri = f"stages/evaluate/{digest}/documents.json"
    documents = {"nats": [nats * 10 + i / 100 for i in range(20)], "tokens": [10] * 20}
    store.write(uri, json.dumps(documents).encode())
    return EvaluatedModel(
        title=title,
        kind="teacher" if title == "teacher" else "export",
        made_by=None,
        model=ModelRef(
            uri="store://m",
            digest=digest,
            architecture="LlamaForCausalLM",
            num_parameters=100,
            num_bytes=size,
        ),
        metrics=Metrics(
            nats_per_token=nats,
            perplexity=9.0,
            num_tokens=200,
            num_documents=20,
            tokens_per_s=1000.0 + size,
            protocol=f"windows of 32, text {text}, float32 on cpu",
            speed_protocol="prefill",
            documents_uri=f"store://{uri}",
            digest="d" * 64,
        ),
    )


def make_night(
    store: FileStore,
    day: int,
    nats: float = 3.0,
    size: int = 900,
    *,
    status: str = "done",
    text: str = "abc",
    key: str = "a",
    recipe: dict[str, Any] | None = None,
) -> RunRecord:
    """Write what a night with one export leaves under runs/, and return its record."""
    models = [
        make_model(store, "teacher", 2.5, 4000, text),
        make_model(store, "int4", nats, size, text),
    ]
    ended = status in ("done", "unchanged", "refused")
    gate = GateReport(passed=status != "refused", checks=[], notes=[])
    outcome = {"done": "published", "unchanged": "unchanged"}.get(status, "refused")
    record = RunRecord.model_validate(
        {
            "recipe": "docs-lm",
            "run_id": f"202611{day:02d}T020000Z-abcdef",
            "started": f"2026-11-{day:02d}T02:00:00+00:00",
            "seconds": 9.0,
            "status": status,
            "store_uri": store.uri,
            "channel": "nightly",
            "stages": [
                StageResult(
                    title=title, stage="distill", key=k, outcome="computed", seconds=1, nodes=[]
                )
                for title, k in (("corpus", "c"), ("1 distill", key))
            ],
            "models": models if ended else models[:1],
            "exports": [ExportResult(export="int4", gate=gate, outcome=outcome, artifact=None)]
            if ended
            else [],
            "data": {"evaluation": text * 10} if ended else {},
        }
    )
    prefix = f"runs/docs-lm/{record.run_id}"
    store.write(f"{prefix}/run.json", record.model_dump_json().encode())
    store.write(f"{prefix}/recipe.yaml", json.dumps(recipe or RECIPE).encode())  # YAML, too
    return record


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path / 'store'}")


def test_a_first_night_has_nothing_to_be_held_against(store: FileStore) -> None:
    record = make_night(store, 20)
    assert read_earlier(store, record) == []
    assert find_changes(store, record, RECIPE, []) is None


def test_a_night_is_held_against_the_last_that_came_to_its_end(store: FileStore) -> None:
    make_night(store, 16, nats=9.9)
    make_night(store, 17, nats=3.2, size=1000, text="xyz", key="b")
    before = make_night(store, 18, nats=3.2, size=1000, key="b")
    make_night(store, 19, status="failed")
    now = RECIPE | {"seed": 1, "steps": [{"distill": {"num_tokens": 400}}, {"prune": None}]}
    record = make_night(store, 20, recipe=now)
    nights = read_earlier(store, record)
    assert [night.run_id for night in nights][1] == before.run_id
    changes = find_changes(store, record, now, nights)
    assert changes is not None
    assert (changes.started, changes.num_ended_early) == ("2026-11-18 02:00 UTC", 1)
    assert changes.other_stages == ["1 distill"] and changes.data == []
    assert [(c.name, c.before, c.now) for c in changes.recipe] == [
        ("seed", "0", "1"),
        ("steps.0.distill.num_tokens", "300", "400"),
        ("steps.1.prune", "\N{EN DASH}", "none"),
    ]
    (export,) = changes.exports
    assert export.nats is not None and export.nats.figure == pytest.approx(-0.2)
    assert export.speed == pytest.approx(1900 / 2000) and not export.is_same


def test_another_text_is_told_and_not_compared(store: FileStore) -> None:
    make_night(store, 18, text="xyz")
    record = make_night(store, 20)
    changes = find_changes(store, record, RECIPE, read_earlier(store, record))
    assert changes is not None and changes.exports[0].nats is None
    assert [(c.name, c.before, c.now) for c in changes.data] == [
        ("evaluation", "xyzxyzxyzxyz", "abcabcabcabc")
    ]


def test_evidence_that_gc_took_fails_no_report(store: FileStore) -> None:
    before = make_night(store, 18, nats=3.1)
    store.delete(before.models[1].metrics.documents_uri.removeprefix("store://"))
    store.delete(f"runs/docs-lm/{before.run_id}/recipe.yaml")
    store.write("runs/docs-lm/20261117T020000Z-0/run.json", b'{"schema_version": 2}')
    record = make_night(store, 20)
    changes = find_changes(store, record, RECIPE, read_earlier(store, record))
    assert changes is not None and changes.exports[0].nats is None and changes.recipe == []


def test_the_front_has_each_earlier_export_once_and_on_this_text_only(store: FileStore) -> None:
    make_night(store, 15, nats=3.4, size=500)
    make_night(store, 16, nats=3.3, status="refused")
    make_night(store, 17, nats=3.2, text="xyz")
    make_night(store, 18, nats=3.1)
    make_night(store, 19, nats=3.1)
    record = make_night(store, 20)
    found = list_exports(read_earlier(store, record), record)
    assert [(e.started[:10], e.nats_per_token) for e in found] == [
        ("2026-11-19", 3.1),
        ("2026-11-15", 3.4),
    ]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1))
def test_nothing_dominates_the_front_and_the_front_dominates_the_rest(
    models: list[tuple[int, float]],
) -> None:
    front = find_front(models)
    for size, nats in front:
        assert not any((s <= size and n <= nats) and (s, n) != (size, nats) for s, n in models)
    for size, nats in models:
        assert any(s <= size and n <= nats for s, n in front)


def test_the_border_steps_down_at_each_model() -> None:
    area, same = Box(0, 0, 100, 100), float
    corners = trace_front([(10, 60.0), (30, 20.0)], area, same, same)
    assert corners == [(10, 0), (10, 60), (30, 60), (30, 20), (100, 20)]
    assert trace_front([], area, same, same) == []


def test_a_change_reads_in_one_line() -> None:
    assert summarise(make_changes()) == (
        "Since 2026-11-19 02:00 UTC: int4 0.014 nats/token better, 3.1% smaller, "
        "1.04\N{MULTIPLICATION SIGN} as fast; int8 no difference shown (\N{MINUS SIGN}0.001 "
        "nats/token). Changed: 1 key of the recipe and source 2 path. 4 of 8 stages differ. "
        "1 night between ended early."
    )


def test_unknown_sides_differ_in_nothing() -> None:
    assert list_differences({}, {"a": 1}) == list_differences({"a": 1}, {}) == []
    assert list_differences({"a": [], "b": {"c": None}}, {"a": [], "b": {"c": None}}) == []


def test_when_a_night_has_paid() -> None:
    """int8 at twice the teacher's speed halves a token's price: 1 EUR over half of 2.5 EUR/h."""
    report = make_report()
    speeds = {"teacher": 10_000.0, "int8": 20_000.0, "int4": 9_000.0}
    models = [
        row.model_copy(update={"tokens_per_s": speeds.get(row.title)}) for row in report.models
    ]
    cost = make_cost(720.0, price=2.5)
    assert cost.price == pytest.approx(1.0)
    paid = {
        item.export: item.num_tokens
        for item in find_payback(report.model_copy(update={"models": models, "cost": cost}))
    }
    assert paid["int4"] is None
    assert paid["int8"] == pytest.approx(1.0 / (2.5 / 3600 / 20_000))
    free = report.model_copy(update={"cost": make_cost(720.0, price=None)})
    assert find_payback(free) == find_payback(report.model_copy(update={"cost": None})) == []
