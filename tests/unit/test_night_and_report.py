"""What is there for the report alone costs no night."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows import compress_model, run_record
from tasks.errors import StorageError
from tasks.run_records import RunRecord

RECORD = RunRecord(
    recipe="tiny",
    run_id="20261121T020000Z-abcdef",
    started="2026-11-21T02:00:00+00:00",
    seconds=1.0,
    status="failed",
    store_uri="file:///store",
    channel="nightly",
    stages=[],
    models=[],
    exports=[],
    error="<script>alert(1)</script>",
)


def draw(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    def gather(*args: Any) -> None:
        raise error

    monkeypatch.setattr(run_record, "gather_report", gather)
    night: Any = SimpleNamespace(store=None)
    recipe: Any = None
    return run_record.make_report(night, recipe, RECORD, None)


def test_a_report_that_cannot_be_drawn_shows_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = draw(monkeypatch, TypeError("no <b> such figure"))
    assert "TypeError: no &lt;b&gt; such figure" in page
    assert "20261121T020000Z-abcdef" in page
    assert "<script>" not in page
    assert "could not be drawn" in capsys.readouterr().err


def test_a_store_that_does_not_answer_is_no_matter_of_drawing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StorageError):
        draw(monkeypatch, StorageError("gone"))


def inspect_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """Inspect two models of which the first cannot be; return what was tried."""
    monkeypatch.setattr(compress_model, "inspect_stage", lambda recipe, model, text: model)
    tried: list[str] = []

    def complete(title: str, stage: Any, record_type: Any) -> None:
        tried.append(title)
        if len(tried) == 1:
            raise error

    models: Any = [
        SimpleNamespace(title=title, kind=kind, model=None)
        for title, kind in (("teacher", "teacher"), ("int4", "export"))
    ]
    inputs: Any = SimpleNamespace(evaluation=None)
    recipe: Any = None
    compress_model.inspect(recipe, inputs, complete, models)
    return tried


def test_a_model_that_cannot_be_inspected_costs_a_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect_with(monkeypatch, AttributeError("past_key_values")) == [
        "inspect teacher",
        "inspect int4",
    ]
    assert "teacher is not inspected: past_key_values" in capsys.readouterr().err


def test_what_ends_a_night_ends_it_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError):
        inspect_with(monkeypatch, StorageError("gone"))
