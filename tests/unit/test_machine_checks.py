"""What a preflight says of clocks, versions, GPUs, disk, and the nodes of a cluster."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from flows import machine_checks
from flows.machine_checks import check_disk, check_nodes, estimate_disk
from infra import version_check
from infra.clock_check import check_clock, judge_clock, measure_skew
from infra.free_memory import available_bytes
from infra.gpu_check import GIB, judge_gpus
from infra.gpus import Gpu
from infra.ray_survey import Node, least_skew
from infra.settings import Settings
from infra.storage import FileStore
from infra.version_check import check_versions, installed_versions, is_release
from tasks.recipe import Recipe
from tasks.records import ModelRef
from tests.unit.artifact_factory import RECIPE


def make_recipe(**cluster: object) -> Recipe:
    return Recipe.model_validate(RECIPE.model_dump() | {"cluster": cluster})


@pytest.mark.parametrize(
    ("skew_s", "level", "said"),
    [
        (0.4, "ok", "agrees within 30 s"),
        (-31.0, "warning", "31 s behind this machine's"),
        (1000.0, "error", "1,000 s ahead of this machine's"),
    ],
)
def test_a_clock_that_is_far_off_is_named(skew_s: float, level: str, said: str) -> None:
    finding = judge_clock(skew_s, "the clock of s3://bucket")
    assert finding.level == level and said in finding.message
    assert (finding.remedy is None) == (level == "ok")


def test_the_clock_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    store = FileStore(f"file://{tmp_path}/not/there/yet")
    assert abs(measure_skew(store)) < 5
    assert check_clock(store).level == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("theirs", "skew"),
    [(100.5, 0.0), (99.0, -1.0), (103.0, 2.0)],
)
def test_a_node_is_off_by_what_the_way_cannot_explain(theirs: float, skew: float) -> None:
    assert least_skew(100.0, theirs, 101.0) == skew


def test_the_versions_here_are_those_of_the_tests() -> None:
    (finding,) = check_versions()
    assert finding.level == "ok"
    assert {"python", "torch", "ray", "prefect", "deepspeed"} <= installed_versions().keys()
    assert "torch 2." in finding.message


def test_another_version_is_a_warning_and_a_broken_requirement_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = version_check.installed
    others = {"ray": "9.9", "sqlalchemy": "2.1.0", "gguf": None}
    monkeypatch.setattr(
        version_check, "installed", lambda name: others[name] if name in others else real(name)
    )
    warning, *errors = check_versions()
    assert warning.level == "warning" and "ray 9.9 (tested with " in warning.message
    assert [error.level for error in errors] == ["error", "error"]
    said = " ".join(error.message for error in errors)
    assert "gguf is not installed" in said and "2.1.0 is installed" in said
    assert all(finding.remedy for finding in (warning, *errors))


def test_a_build_of_a_release_is_that_release() -> None:
    assert is_release("2.13.0+cpu", "2.13.0") and is_release("3.11.9", "3.11")
    assert not is_release("2.13.1", "2.13.0") and not is_release("3.110", "3.11")


def make_gpu(index: int, free_bytes: int | None) -> Gpu:
    total_bytes = None if free_bytes is None else 80 * GIB
    return Gpu(index, f"GPU-{index}", "NVIDIA H100 80GB HBM3", total_bytes, free_bytes, None)


def test_gpus_are_counted_and_torch_must_know_them() -> None:
    gpus = [make_gpu(0, 79 * GIB), make_gpu(1, GIB), make_gpu(2, None)]
    ok, busy = judge_gpus(3, gpus, "13.0")
    assert ok.level == "ok" and "3 x NVIDIA H100" in ok.message
    assert busy.level == "warning"
    assert "1 of 3 GPUs are more than half full (1 GiB free)" in busy.message
    (few,) = judge_gpus(4, gpus, "13.0")
    assert few.level == "error" and "4 GPUs are asked for, 3 found" in few.message
    (blind,) = judge_gpus(2, gpus, None)
    assert blind.level == "error" and "CPUs alone" in blind.message


def node(host: str, cpus: float = 8, gpus: float = 0, skew_s: float = 0, **versions: str) -> Node:
    return Node(host, cpus, gpus, installed_versions() | versions, skew_s)


def test_a_cluster_like_this_machine_is_ok() -> None:
    recipe = make_recipe(ray="ray://head:10001", workers=4, threads_per_worker=4)
    findings = check_nodes(recipe, [node("a"), node("b", prefect="none")])
    assert [finding.level for finding in findings] == ["ok", "ok"]
    assert "2 nodes with places for 4 of 4 workers" in findings[0].message


def test_what_a_cluster_lacks_is_named_with_its_node() -> None:
    recipe = make_recipe(ray="auto", workers=4, gpus_per_worker=1)
    nodes = [
        node("a", gpus=2, torch="2.0.0"),
        node("b", gpus=0, deepspeed="none", skew_s=-400),
        Node("c", 4, 1, {}),
    ]
    places, torch, deepspeed, silent, clock = check_nodes(recipe, nodes)
    assert places.level == "warning" and "3 of 4 workers" in places.message
    assert torch.level == "warning" and torch.message.startswith("a: torch 2.0.0, here 2.")
    assert deepspeed.level == "error" and deepspeed.message.startswith("b: deepspeed none")
    assert silent.message == "node c did not answer in time"
    assert clock.level == "warning" and "node b is 400 s behind" in clock.message
    assert all(finding.remedy for finding in (places, torch, deepspeed, silent, clock))


def test_memory_that_is_only_cached_counts_as_free_and_a_containers_limit_counts(
    tmp_path: Path,
) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemFree: 100 kB\nMemAvailable:   900 kB\nHugePages_Total: 0\n")
    assert available_bytes(meminfo, cgroup) == 900 * 1024
    cgroup.mkdir()
    for name, text in {"max": "max", "current": "700", "stat": "anon 5\ninactive_file 50"}.items():
        (cgroup / f"memory.{name}").write_text(f"{text}\n")
    assert available_bytes(meminfo, cgroup) == 900 * 1024
    (cgroup / "memory.max").write_text("1000\n")
    assert available_bytes(meminfo, cgroup) == 350


def test_a_disk_that_cannot_hold_the_night_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    settings, store = Settings(tmp_path / "home", None), FileStore(f"file://{tmp_path}/store")
    teacher = ModelRef(
        uri="x", digest="d" * 64, architecture="L", num_parameters=10**9, num_bytes=4 * 10**9
    )
    needed = estimate_disk(RECIPE, teacher.num_parameters)
    # a pruned model, a trained one with its checkpoints, two exports
    assert needed == (4 * machine_checks.MODEL_BYTES + machine_checks.TRAINING_BYTES) * 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed + GIB))
    assert check_disk(RECIPE, teacher, settings, store).level == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed - GIB))
    finding = check_disk(RECIPE, teacher, settings, store)
    assert finding.level == "warning" and "nightpress gc --delete" in (finding.remedy or "")
