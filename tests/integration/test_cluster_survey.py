"""A look at the nodes of a real Ray cluster, from another process, as a preflight takes it."""

import time
from pathlib import Path

import pytest

from infra.ray_cluster import RayExecutor
from infra.ray_survey import survey_cluster
from infra.version_check import installed_versions

pytestmark = pytest.mark.integration


def test_every_node_says_what_it_has(tmp_path: Path) -> None:
    executor = RayExecutor("local", 2, 0, 1, tmp_path)
    try:
        address = executor.connect().get_runtime_context().gcs_address
        began = time.monotonic()
        (node,) = survey_cluster(address, timeout_s=60)
        print(f"surveyed in {time.monotonic() - began:.1f} s")
        assert (node.num_cpus, node.num_gpus) == (2, 0)
        assert node.versions == installed_versions()
        assert abs(node.skew_s) < 1
    finally:
        executor.close()
