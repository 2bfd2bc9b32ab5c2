"""The stores that every rule is held to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.storage import FileStore, Store
from tests.conformance.empty_bucket import empty_bucket_store
from tests.conformance.moto_server import running_moto


@pytest.fixture(scope="module")
def moto() -> Iterator[dict[str, str]]:
    with running_moto() as environment:
        yield environment


@pytest.fixture(params=["folder", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store."""
    if request.param == "folder":
        return FileStore(f"file://{tmp_path / 'store'}")
    return empty_bucket_store(request.getfixturevalue("moto"), tmp_path, monkeypatch)
