"""What a session of Ray is told before there is one."""

import socket

import pytest

from infra.ray_session import check_address, effective_address, starting, worker_environment


def test_the_environment_overrides_a_recipes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert effective_address("local") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert effective_address("local") == "auto"


def test_a_door_that_nobody_opens_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_address(address)
        check_address(f"ray://{address}")
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}.*ray start --head"):
        check_address(address)
    check_address("local")


def test_workers_get_named_variables_and_a_cluster_this_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    monkeypatch.setenv("NIGHTPRESS_ENDPOINT_KEY", "secret")
    here = worker_environment("local", threads_per_worker=4, gpus_per_worker=0.5)
    assert here.keys() == {"env_vars"} and "secret" not in str(here)
    assert here["env_vars"]["OMP_NUM_THREADS"] == "4"
    assert here["env_vars"]["NIGHTPRESS_GPU_SHARE"] == "0.5"
    assert here["env_vars"]["NCCL_SOCKET_IFNAME"] == "eth0"
    assert "DS_ACCELERATOR" not in here["env_vars"]
    there = worker_environment("auto", threads_per_worker=1, gpus_per_worker=0)
    assert there["env_vars"]["DS_ACCELERATOR"] == "cpu"
    assert there.keys() == {"env_vars", "working_dir", "excludes"}


def test_a_start_that_takes_too_long_is_worth_another_try() -> None:
    with pytest.raises(ConnectionError, match="Ray did not start: too slow"), starting():
        raise Exception("too slow")
    with pytest.raises(ValueError, match="another"), starting():
        raise ValueError("another")
