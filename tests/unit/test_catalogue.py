from pathlib import Path

import pytest

from flows.renew_catalogue import renew_catalogue
from infra.storage import FileStore
from tasks.publish.listing import Listing
from tasks.report.catalogue import CATALOGUE, render_catalogue, write_catalogue
from tests.unit.artifact_factory import store_artifact, write_files


def make_listing(**changes: object) -> Listing:
    known = {
        "recipe": "docs-lm",
        "export": "int4",
        "digest": "ab" * 32,
        "channels": ["nightly"],
        "created": "2026-11-20T02:00:00+00:00",
        "num_bytes": 1_000_182,
        "num_parameters": 842_000,
        "nats_per_token": 3.174,
    }
    return Listing.model_validate(known | changes)


def test_the_page_lists_artifacts_and_what_serves_them() -> None:
    rows = make_listing(export="corpus", num_parameters=None, nats_per_token=None, num_rows=1234)
    page = render_catalogue([make_listing(), rows], "s3://models")
    assert "2 artifacts, 2 of them served" in page
    assert f'href="artifacts/docs-lm/int4/{"ab" * 32}/report.html"' in page
    assert "3.174" in page and "1,234" in page and "served by nightly" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing comes from a network"


def test_what_stands_in_names_is_escaped() -> None:
    page = render_catalogue([make_listing()], "s3://<script>alert(1)</script>")
    assert "<script>alert" not in page


def test_it_is_written_from_the_store_alone(tmp_path: Path) -> None:
    store = FileStore(f"file://{tmp_path / 'store'}")
    write_catalogue(store)
    assert b"0 artifacts" in store.read(CATALOGUE)
    manifest = store_artifact(store, write_files(tmp_path / "model", "weights"), channel=None)
    write_catalogue(store)
    page = store.read(CATALOGUE).decode()
    assert "1 artifacts, 0 of them" in page and manifest.digest[:12] in page


def test_an_artifact_that_cannot_be_read_fails_no_night(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FileStore(f"file://{tmp_path / 'store'}")
    manifest = store_artifact(store, write_files(tmp_path / "model", "weights"), channel=None)
    store.write(f"{manifest.prefix}/manifest.json", b"{}")
    renew_catalogue(store)
    assert "warning: the catalogue was not renewed" in capsys.readouterr().err
    assert not store.exists(CATALOGUE)
