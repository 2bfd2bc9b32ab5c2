"""The races of all stores once more, on a real S3 server, where creates are slow and unordered."""

from pathlib import Path

import pytest

from infra.storage import S3Store
from tests.conformance.empty_bucket import empty_bucket_store
from tests.conformance.test_races import *  # noqa: F403
from tests.integration.swift_server import Swift

pytestmark = pytest.mark.integration


@pytest.fixture
def store(swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """In place of the conformance tests' stores."""
    return empty_bucket_store(swift.environment, tmp_path, monkeypatch)
