"""Real servers for the integration tests, one of each per session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml

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


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone, for what needs DeepSpeed but no Ray.

    One for all tests: DeepSpeed remembers the first that it sees.
    """
    rendezvous = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    os.environ["LOCAL_RANK"] = "0"
    yield
    dist.destroy_process_group()


@pytest.fixture
def short_recipe(recipe_text: str, tmp_path: Path) -> Path:
    """The teacher rounded to int8, every minute."""
    raw = yaml.safe_load(recipe_text)
    raw |= {"steps": [], "comparisons": [], "exports": raw["exports"][1:]}
    raw["corpus"]["sources"] = raw["corpus"]["sources"][1:]
    raw["schedule"] = {"cron": "* * * * *", "timezone": "Europe/Berlin"}
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path
