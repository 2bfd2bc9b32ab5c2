"""The files in infra/ name things that exist, in the versions that are pinned."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def load(name: str) -> list[Any]:
    return list(yaml.safe_load_all((INFRA / name).read_text()))


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert found
    return found[1]


def test_prefect_deploys_flows_that_take_these_parameters() -> None:
    (file,) = load("prefect.yaml")
    assert file["prefect-version"] == pinned("prefect")
    for deployment in file["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        inspect.signature(flow.fn).bind(**deployment["parameters"])


def test_the_cluster_runs_the_pinned_ray() -> None:
    (cluster,) = load("kubernetes/ray-cluster.yaml")
    assert cluster["spec"]["rayVersion"] == pinned("ray")


def test_the_image_has_every_package_and_python() -> None:
    text = (INFRA / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) \w+$", text, re.M))
    assert {"flows", "tasks", "kernels", "infra"} <= copied
    assert "FROM python:3.11" in text


def test_ports_are_on_loopback_and_secrets_have_no_default() -> None:
    (file,) = load("compose.yaml")
    ports = [port for service in file["services"].values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    variables = set(re.findall(r"\$\{([A-Z_]+)", (INFRA / "compose.yaml").read_text()))
    example = (INFRA / "compose.env.example").read_text()
    offered = dict(re.findall(r"^([A-Z_]+)=(.*)$", example, re.M))
    assert variables <= offered.keys()
    assert all(offered[name] == "" for name in offered if re.search("PASSWORD|TOKEN", name))


@pytest.mark.parametrize("manifest", ["ray-cluster.yaml", "night-worker.yaml"])
def test_containers_have_limits_and_no_secret_in_the_file(manifest: str) -> None:
    text = (INFRA / "kubernetes" / manifest).read_text()
    assert "limits:" in text and "RAY_AUTH_MODE, value: token" in text
    assert not re.search(r"(SECRET|PASSWORD|KEY).*value:", text)


def test_a_recipe_file_is_read_when_its_night_begins(recipe_file: Path) -> None:
    from flows.run_nightly import run_recipe_file

    recipe_file.write_text("name: [")
    with pytest.raises(ValueError, match="is not YAML"):
        run_recipe_file.fn(str(recipe_file))
