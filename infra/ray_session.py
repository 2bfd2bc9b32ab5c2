"""A session of Ray: where it is, whether it answers, how it begins, what its workers are given."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

ROOT = Path(__file__).parent.parent
EXCLUDED = [".git", ".venv", ".nightpress", "tests", "docs", "configs/demo/text"]
PASSED = ("DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "HF_HUB_OFFLINE")
"""Variables that workers take over from here."""


def effective_address(address: str) -> str:
    """Return where Ray is: RAY_ADDRESS overrides what a recipe says."""
    return os.environ.get("RAY_ADDRESS", address)


def check_address(address: str, timeout_s: float = 5.0) -> None:
    """Knock at a Ray cluster's door.

    Raises:
        ValueError: nobody answers there.
    """
    if address in ("local", "auto"):
        return
    parsed = urlparse(address if "://" in address else f"ray://{address}")
    host, port = parsed.hostname or "", parsed.port or (10001 if "://" in address else 6379)
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        raise ValueError(
            f"cluster.ray: no Ray cluster answers at {address} ({error}); start one with "
            "`ray start --head`, or say `ray: local`"
        ) from None


def start_ray(
    address: str, num_cpus: int | None = None, runtime_env: dict[str, Any] | None = None
) -> Any:
    """Begin a session, at a cluster of our own (`local`) or at one that runs; return the module.

    Args:
        num_cpus: Logical CPUs of a cluster of our own: workers are placed by them, while threads
            are pinned per worker. A cluster that runs has its own count.

    Raises:
        ConnectionError: Ray's own daemons did not start in time.
    """
    local = address == "local"
    if local:
        # Ray then listens on the loopback alone, as it does on macOS by itself.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    leave_stdout_alone(ray)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with starting():
        ray.init(
            # "local" is a cluster of our own; None would join any that runs here.
            address=address,
            num_cpus=num_cpus if local else None,
            include_dashboard=False if local else None,
            log_to_driver=bool(os.environ.get("NIGHTPRESS_DEBUG")),
            logging_level="ERROR",
            runtime_env=runtime_env,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
    return ray


def worker_environment(
    address: str, threads_per_worker: int, gpus_per_worker: float
) -> dict[str, Any]:
    """Return Ray's `runtime_env`: the variables that workers get, and the code where it is needed.

    A local worker imports the installed packages; a cluster gets this checkout's files.
    """
    env_vars = {name: os.environ[name] for name in PASSED if name in os.environ}
    env_vars |= {"OMP_NUM_THREADS": str(threads_per_worker), "TOKENIZERS_PARALLELISM": "false"}
    env_vars["NIGHTPRESS_GPU_SHARE"] = str(min(1.0, gpus_per_worker))  # infra/energy.py
    if gpus_per_worker == 0:
        env_vars["DS_ACCELERATOR"] = "cpu"
    shipped = {} if address == "local" else {"working_dir": str(ROOT), "excludes": EXCLUDED}
    return {"env_vars": env_vars} | shipped


def leave_stdout_alone(ray: Any) -> None:
    """Let Ray say on stderr what it says of lost nodes and of workers.

    It would print on stdout, whatever `log_to_driver` says, among a command's results; the
    function that does is private to it.
    """
    worker = ray._private.worker
    show = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, **how: show(data | {"is_err": True}, **how)


@contextmanager
def starting() -> Iterator[None]:
    """Name what Ray raises as a bare Exception where its own daemons need more than 30 s.

    Raises:
        ConnectionError: they did; on a machine that is less busy by then, the next try may pass.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ConnectionError(f"Ray did not start: {error}") from error
