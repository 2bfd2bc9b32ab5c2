"""What Prefect's UI is shown of a night, and that the night does not depend on it."""

import re

import pytest

from flows.prefect_artifacts import make_artifacts, name_key, show_run
from tasks.records import ArtifactRef
from tasks.run_records import RunRecord, StageResult
from tests.unit.test_notifying import make_record

KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def published() -> RunRecord:
    record = make_record("refused", int4="published", int8="refused")
    uri = "s3://bucket/team/artifacts/tiny/int4/dd (1)"
    artifact = ArtifactRef(
        recipe="tiny", export="int4", digest="d" * 64, uri=uri, num_parameters=9, num_bytes=18
    )
    first = record.exports[0].model_copy(update={"artifact": artifact})
    stage = StageResult(
        title="quantize int4",
        stage="quantize",
        key="k" * 64,
        outcome="cached",
        seconds=12.34,
        nodes=["a", "b"],
    )
    return record.model_copy(update={"exports": [first, record.exports[1]], "stages": [stage]})


def test_a_night_shows_its_tables_and_its_links() -> None:
    shown = {artifact.key: artifact for artifact in make_artifacts(published())}
    assert list(shown) == [
        "tiny-night",
        "tiny-models",
        "tiny-gate",
        "tiny-stages",
        "tiny-report",
        "tiny-export-int4",
    ]
    assert all(KEY.fullmatch(key or "") for key in shown)
    assert all("refused in" in (artifact.description or "") for artifact in shown.values())
    tables = {what: shown[f"tiny-{what}"].table for what in ("models", "gate", "stages")}  # type: ignore[attr-defined]
    assert [row["model"] for row in tables["models"]] == ["int4", "int8"]
    assert tables["models"][0]["seconds"] == "12.3"
    assert {row["passed"] for row in tables["gate"]} == {"ok", "no"}
    assert tables["stages"][0]["outcome"] == "cached" and tables["stages"][0]["nodes"] == "a, b"
    link = shown["tiny-export-int4"]
    assert link.format(_sync=True) == (  # type: ignore[call-arg]
        "[int4 published](s3://bucket/team/artifacts/tiny/int4/dd%20%281%29)"
    )


def test_a_failed_night_has_a_summary_in_which_its_error_is_no_markup() -> None:
    record = make_record("failed", error="StorageError: <script>alert(1)</script>\n# full")
    summary, report = make_artifacts(record)
    text = summary.format(_sync=True)  # type: ignore[call-arg]
    assert str(text).splitlines()[2:] == [
        "    StorageError: <script>alert(1)</script>",
        "    # full",
    ]
    assert report.key == "tiny-report"


def test_keys_are_what_prefect_takes_and_the_same_every_night() -> None:
    assert name_key("docs_lm.v2", "export-int4") == "docs-lm-v2-export-int4"


def test_outside_a_flow_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_run(published())
    assert capsys.readouterr().err == ""
