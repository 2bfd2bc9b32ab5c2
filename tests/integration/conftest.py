"""Real servers for the integration tests, one of each per session."""

from collections.abc import Iterator

import pytest

from infra.prefect_server import running_server
from tests.integration.swift_server import Swift, running_swift


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """OpenStack Swift, empty at first; its `environment` is how a client reaches it."""
    with running_swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prefect server's API."""
    with running_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url
